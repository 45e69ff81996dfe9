"""What a user can get wrong: one paragraph, exit code 2 (or 1), no traceback, nothing left that looks whole."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

from neurovol.arguments import parser
from neurovol.cli import main
from neurovol.volume.omezarr import open_volume

STACK = np.random.default_rng(0).integers(1, 1000, (5, 40, 50)).astype(np.uint16)
PROJECT = """
name = "p"
[[samples]]
name = "s"
source = "raw/s.tif"
voxel_size_um = [2.0, 1.0, 1.0]
[[annotations]]
sample = "s"
source = "drawn.tif"
[pseudolabel]
steps = 2
batch = 8
[cluster]
workers = 1
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of one sample and one annotation, in good order."""
    (tmp_path / "raw").mkdir()
    tifffile.imwrite(tmp_path / "raw/s.tif", STACK, photometric="minisblack")
    tifffile.imwrite(tmp_path / "drawn.tif", (STACK > 900).astype(np.uint8), photometric="minisblack")
    file = tmp_path / "project.toml"
    file.write_text(PROJECT)
    return file


def refused(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 2) -> str:
    """What a command says as it fails with that code: a paragraph that names it, and no traceback."""
    assert main([str(a) for a in arguments]) == code
    error = capsys.readouterr().err
    assert error.startswith("neurovol: ") or "\nneurovol: " in error
    assert "Traceback" not in error
    return error


def change(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def nothing_looks_whole(project: Path) -> bool:
    return not any((f.parent / "c").exists() or "ome" in f.read_text() for f in project.parent.rglob("zarr.json"))


def test_a_missing_project_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "no such project file" in refused(capsys, "run", tmp_path / "none.toml")


def test_a_project_file_that_is_not_toml(capsys: pytest.CaptureFixture[str], project: Path) -> None:
    project.write_text("name = = 3")
    assert "not valid TOML" in refused(capsys, "run", project)


def test_an_unknown_key_is_named(capsys: pytest.CaptureFixture[str], project: Path) -> None:
    change(project, "[pseudolabel]", "[pseudolabel]\nstepps = 3")
    assert "pseudolabel.stepps = 3: there is no such key" in refused(capsys, "run", project)


def test_a_voxel_size_of_zero(capsys: pytest.CaptureFixture[str], project: Path) -> None:
    change(project, "[2.0, 1.0, 1.0]", "[0, 1.0, 1.0]")
    assert "samples.0.voxel_size_um.0 = 0: Input should be greater than 0" in refused(capsys, "run", project)


def test_an_unset_environment_variable_in_a_path(capsys: pytest.CaptureFixture[str], project: Path) -> None:
    change(project, "raw/s.tif", "${NEUROVOL_NOT_SET}/s.tif")
    assert "environment variable NEUROVOL_NOT_SET, which is not set" in refused(capsys, "run", project)


def test_a_missing_source(capsys: pytest.CaptureFixture[str], project: Path) -> None:
    (project.parent / "raw/s.tif").unlink()
    assert "s.tif" in refused(capsys, "run", project)
    assert nothing_looks_whole(project)


def test_an_empty_folder_as_source(capsys: pytest.CaptureFixture[str], project: Path) -> None:
    (project.parent / "empty").mkdir()
    change(project, "raw/s.tif", "empty")
    assert "empty" in refused(capsys, "run", project)


@pytest.mark.parametrize("odd", [STACK[0, :, :-1], STACK[0].astype(np.uint8)])
def test_slices_of_different_size_or_dtype(capsys: pytest.CaptureFixture[str], project: Path, odd: np.ndarray) -> None:
    folder = project.parent / "slices"
    folder.mkdir()
    for z, plane in enumerate([*STACK, odd]):
        tifffile.imwrite(folder / f"s{z}.tif", plane, photometric="minisblack")
    change(project, "raw/s.tif", "slices")
    assert "s5.tif" in refused(capsys, "run", project)
    assert nothing_looks_whole(project)


def test_a_truncated_tiff(capsys: pytest.CaptureFixture[str], project: Path) -> None:
    file = project.parent / "raw/s.tif"
    os.truncate(file, file.stat().st_size - 4000)
    assert "s.tif" in refused(capsys, "run", project)
    assert nothing_looks_whole(project)


def test_a_slice_that_is_damaged_inside_is_set_aside_and_named(
    capsys: pytest.CaptureFixture[str], project: Path
) -> None:
    folder = project.parent / "slices"
    folder.mkdir()
    for z, plane in enumerate(STACK):
        tifffile.imwrite(folder / f"s{z}.tif", plane, photometric="minisblack", compression="zlib")
    bytes_ = bytearray((folder / "s3.tif").read_bytes())
    bytes_[len(bytes_) // 2 : len(bytes_) // 2 + 50] = b"\0" * 50
    (folder / "s3.tif").write_bytes(bytes_)
    change(project, "raw/s.tif", "slices")
    assert "s3.tif" in refused(capsys, "convert", project, code=1)
    assert (
        nothing_looks_whole(project)
        or not open_volume(project.parent / "stores/p/samples/s/image.ome.zarr", allow_incomplete=True).complete
    )


def test_a_box_outside_the_sample(capsys: pytest.CaptureFixture[str], project: Path) -> None:
    change(project, 'source = "drawn.tif"', 'source = "drawn.tif"\nbox = [[0, 5], [0, 40], [10, 60]]')
    assert "(5, 40, 50)" in refused(capsys, "run", project)


def test_a_box_that_runs_backwards(capsys: pytest.CaptureFixture[str], project: Path) -> None:
    change(project, 'source = "drawn.tif"', 'source = "drawn.tif"\nbox = [[0, 5], [30, 10], [10, 50]]')
    assert "axis y runs from 30 to 10" in refused(capsys, "run", project)


def test_an_annotation_of_the_wrong_shape(capsys: pytest.CaptureFixture[str], project: Path) -> None:
    tifffile.imwrite(project.parent / "drawn.tif", np.zeros((5, 40, 49), np.uint8), photometric="minisblack")
    error = refused(capsys, "run", project)
    assert "(5, 40, 49)" in error
    assert "(5, 40, 50)" in error


def test_no_annotated_neuron_at_all(capsys: pytest.CaptureFixture[str], project: Path) -> None:
    tifffile.imwrite(project.parent / "drawn.tif", np.zeros(STACK.shape, np.uint8), photometric="minisblack")
    assert "neuron" in refused(capsys, "run", project)


def test_no_annotation_at_all(capsys: pytest.CaptureFixture[str], project: Path) -> None:
    change(project, '[[annotations]]\nsample = "s"\nsource = "drawn.tif"', "")
    assert "nothing to learn from" in refused(capsys, "run", project)


def test_an_unknown_sample(capsys: pytest.CaptureFixture[str], project: Path) -> None:
    assert 'no sample "x"; the project declares s' in refused(capsys, "convert", project, "--sample", "x")


def test_an_override_that_is_none(capsys: pytest.CaptureFixture[str], project: Path) -> None:
    assert "expected section.key=value" in refused(capsys, "run", project, "--set", "train.steps")


def test_an_unknown_stage_to_redo(capsys: pytest.CaptureFixture[str], project: Path) -> None:
    assert "no such stage" in refused(capsys, "run", project, "--redo", "paint")


def test_a_stage_before_its_turn_says_what_comes_first(capsys: pytest.CaptureFixture[str], project: Path) -> None:
    assert "run `neurovol convert` first" in refused(capsys, "pseudolabel", project)
    assert "run `neurovol train` first" in refused(capsys, "segment", project)


def test_a_store_that_belongs_to_another_source(capsys: pytest.CaptureFixture[str], project: Path) -> None:
    assert main(["convert", str(project)]) == 0
    tifffile.imwrite(project.parent / "raw/s.tif", STACK[:, ::-1], photometric="minisblack")
    assert "--redo convert" in refused(capsys, "convert", project)


def test_a_store_that_no_ledger_knows(capsys: pytest.CaptureFixture[str], project: Path) -> None:
    foreign = project.parent / "stores/p/samples/s/image.ome.zarr/keep.txt"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("mine")
    assert "may belong to another source" in refused(capsys, "convert", project)
    assert foreign.read_text() == "mine"


def test_source_to_dest_needs_no_project(tmp_path: Path, project: Path) -> None:
    source, dest = project.parent / "raw/s.tif", tmp_path / "out.ome.zarr"
    assert main(["convert", str(source), str(dest), "--voxel-size", "2", "1", "1"]) == 0
    assert open_volume(dest).shape == (5, 40, 50)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("samples.0.channels=[1]", "--set samples.0.channels: samples is not a section of settings"),
        ("convert.chunk.0=3", "convert.chunk"),
        ("where=1", "where = 1"),
        ("model=1", "model = 1"),
    ],
)
def test_a_setting_that_source_to_dest_does_not_have_is_refused_by_its_name(
    tmp_path: Path, project: Path, capsys: pytest.CaptureFixture[str], setting: str, said: str
) -> None:
    source, dest = project.parent / "raw/s.tif", tmp_path / "out.ome.zarr"
    assert main(["convert", str(source), str(dest), "--voxel-size", "2", "1", "1", "--set", setting]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert not dest.exists()


def test_source_to_dest_refuses_a_dest_of_another_source(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, project: Path
) -> None:
    dest = tmp_path / "out.ome.zarr"
    arguments = [str(dest), "--voxel-size", "2", "1", "1"]
    assert main(["convert", str(project.parent / "raw/s.tif"), *arguments]) == 0
    tifffile.imwrite(tmp_path / "other.tif", STACK[:4], photometric="minisblack")
    assert "source" in refused(capsys, "convert", tmp_path / "other.tif", *arguments)
    assert open_volume(dest).shape == (5, 40, 50)


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounting a small disk needs root on Linux")
def test_a_full_disk_ends_the_run_and_it_goes_on_once_there_is_room(
    capsys: pytest.CaptureFixture[str], project: Path
) -> None:
    disk = project.parent / "stores"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"mounting is not allowed here: {mounted.stderr.decode()}")
    try:
        big = np.random.default_rng(0).integers(0, 60000, (5, 200, 300)).astype(np.uint16)
        tifffile.imwrite(project.parent / "raw/s.tif", big, photometric="minisblack")
        tifffile.imwrite(project.parent / "drawn.tif", (big > 50000).astype(np.uint8), photometric="minisblack")
        assert "disk full" in refused(capsys, "convert", project, code=1)
        assert (
            nothing_looks_whole(project)
            or not open_volume(disk / "p/samples/s/image.ome.zarr", allow_incomplete=True).complete
        )
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        assert main(["convert", str(project)]) == 0
        assert open_volume(disk / "p/samples/s/image.ome.zarr").complete
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_the_command_itself_prints_no_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "neurovol.cli", "run", str(tmp_path / "none.toml")], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("neurovol: ")
    assert "Traceback" not in done.stderr


def test_a_phantom_is_written_as_tiff_with_its_truth(tmp_path: Path) -> None:
    dest, truth = tmp_path / "p.tif", tmp_path / "t.tif"
    assert main(["phantom", str(dest), "--shape", "5", "31", "37", "--seed", "3", "--truth", str(truth)]) == 0
    assert tifffile.imread(dest).shape == tifffile.imread(truth).shape == (5, 31, 37)
    assert main(["convert", str(dest), str(tmp_path / "x.ome.zarr")]) == 0
    assert open_volume(tmp_path / "x.ome.zarr").voxel_size_um == (2.0, 0.88, 0.88)


def test_a_phantoms_plan_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["phantom", str(tmp_path / "p.tif"), "--shape", "10", "100", "1000", "--dry-run"]) == 0
    assert "10 × 100 × 1000 voxels (z, y, x), uint16, 2.0 MB" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_phantom_of_no_voxels_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "phantom: shape.1 = 0" in refused(capsys, "phantom", tmp_path / "p.tif", "--shape", "10", "0", "10")


def test_help_names_every_command_and_reads_well() -> None:
    text = parser().format_help()
    for command in ("phantom", "convert", "pseudolabel", "train", "segment", "evaluate", "run", "status"):
        assert command in text
    assert max(map(len, text.splitlines())) < 140


def test_sources_may_be_given_together_or_one_by_one() -> None:
    together, apart = ["--source", "a", "b"], ["--source", "a", "--source", "b"]
    for sources in (together, apart):
        assert parser().parse_args(["verify", "v.zarr", *sources]).source == [Path("a"), Path("b")]


def test_importing_neurovol_imports_no_torch() -> None:
    code = "import sys, neurovol, neurovol.geometry, neurovol.settings, neurovol.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    command = f"{sys.executable} -m neurovol.cli run --help | true"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    code = (
        "import sys; from neurovol import cli; cli.COMMANDS['run'] = lambda _: [print('x' * 99) for _ in range(10**5)];"
        f"sys.exit(cli.main(['run', {str(tmp_path / 'p.toml')!r}]))"
    )
    done = subprocess.run(
        f'{sys.executable} -c "{code}" | head -1', shell=True, capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("xxx")
    assert done.stderr == ""
