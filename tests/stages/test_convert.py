"""Conversion: one pass over the source, levels included, whatever the source can be read in."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from neurovol.blockwise.ledger import Header, Ledger
from neurovol.blockwise.runner import Meter
from neurovol.cli import main
from neurovol.errors import UserError
from neurovol.geometry import BlockGrid, Box
from neurovol.levels import fused_levels, level_factors
from neurovol.stages.blockcopy import Convert, read_filled
from neurovol.stages.copying import copiers, run_unpacked
from neurovol.stages.single import single_conversion
from neurovol.volume.omezarr import VolumeReader, create_volume, open_volume
from neurovol.volume.pyramid import downsample
from neurovol.volume.source import Source
from neurovol.volume.tiff import open_tiff
from tests.tiny import contents

SHAPE = (19, 83, 101)
STACK = np.random.default_rng(0).integers(1, 60000, SHAPE).astype(np.uint16)
STORE = {"shape": SHAPE, "voxel_size_um": (2.0, 0.88, 0.88), "chunk": (4, 8, 8), "shard": (8, 32, 32)}
FACTORS = level_factors(SHAPE, (2.0, 0.88, 0.88), smallest=8)


def _slices(folder: Path, **options: Any) -> Path:
    folder.mkdir()
    for z, page in enumerate(STACK):
        tifffile.imwrite(folder / f"s{z:02}.tif", page, **options)
    return folder


def _strips(file: Path) -> Path:
    """As the lab's stitching tool writes them: one compressed strip a page."""
    with tifffile.TiffWriter(file) as writer:
        for page in STACK:
            writer.write(page, contiguous=False, compression="zlib", rowsperstrip=SHAPE[1])
    return file


def _reference(levels: int) -> list[np.ndarray]:
    found = [STACK]
    for factors in FACTORS[: levels - 1]:
        found.append(downsample(found[-1], factors, "mean"))
    return found


def _all_levels(path: Path) -> list[np.ndarray]:
    info = open_volume(path, allow_incomplete=True)
    whole = (Box.of_shape(info.level_shape(n)) for n in range(info.levels))
    return [VolumeReader(str(path), n, allow_incomplete=True).read(box)[0] for n, box in enumerate(whole)]


def test_levels_made_with_level_0_equal_those_of_the_whole_volume(tmp_path: Path) -> None:
    source = open_tiff(_slices(tmp_path / "raw"))
    fused = fused_levels(SHAPE, STORE["chunk"], STORE["shard"], FACTORS)
    assert fused == 2
    path = tmp_path / "v"
    create_volume(path, channels=1, dtype="uint16", factors=FACTORS[:fused], fused=fused, **STORE)
    task = Convert(source, (0,), str(path), tuple(FACTORS[:fused]), str(tmp_path))
    for block in reversed(list(BlockGrid(SHAPE, STORE["shard"], STORE["shard"]))):
        task(block)
    for found, wanted in zip(_all_levels(path), _reference(fused + 1), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_a_conversion_has_every_level_of_the_whole_volume(tmp_path: Path) -> None:
    source, dest = _slices(tmp_path / "raw"), tmp_path / "v.ome.zarr"
    assert main(["convert", str(source), str(dest), "--voxel-size", "2", "0.88", "0.88"]) == 0
    info = open_volume(dest)
    assert info.fused >= 1
    for found, wanted in zip(_all_levels(dest), _reference(info.levels), strict=True):
        np.testing.assert_array_equal(found, wanted)


@dataclass(frozen=True)
class Counting:
    """A source that notes each plane it is asked for."""

    source: Source
    log: str

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.source, name)

    def read(self, box: Box, channels: tuple[int, ...], out: Any = None) -> Any:
        with Path(self.log).open("a") as log:
            log.writelines(f"{z}\n" for z in range(box.start[0], box.stop[0]))
        return self.source.read(box, channels, out)


def test_each_slice_that_is_one_strip_is_decoded_exactly_once(client: Any, tmp_path: Path) -> None:
    source = open_tiff(_strips(tmp_path / "s.tif"))
    assert source.grain == (1, *SHAPE[1:])
    create_volume(tmp_path / "v", channels=1, dtype="uint16", factors=[], **STORE)
    log = tmp_path / "reads"
    task = Convert(Counting(source, str(log)), (0,), str(tmp_path / "v"), (), str(tmp_path))
    blocks = list(BlockGrid(SHAPE, STORE["shard"], STORE["shard"]))
    with Ledger(tmp_path / "l.jsonl", Header("convert", {}, len(blocks))) as ledger:
        run_unpacked(client, task, blocks, Meter(ledger), 0, tmp_path / "scratch")
    assert sorted(int(z) for z in log.read_text().split()) == list(range(SHAPE[0]))
    np.testing.assert_array_equal(_all_levels(tmp_path / "v")[0], STACK)
    assert not (tmp_path / "scratch").exists()


def test_a_compressed_stack_becomes_the_same_volume_as_a_plain_one(tmp_path: Path) -> None:
    for name, source in {"plain": _slices(tmp_path / "raw"), "strips": _strips(tmp_path / "s.tif")}.items():
        settings = ["--voxel-size", "2", "0.88", "0.88", "--set", "convert.shard=[32, 64, 64]"]
        assert main(["convert", str(source), str(tmp_path / f"{name}.zarr"), *settings]) == 0
    assert contents(tmp_path / "plain.zarr" / "0") == contents(tmp_path / "strips.zarr" / "0")
    assert not list(tmp_path.glob("*.scratch"))


def test_the_plan_tells_files_levels_and_scratch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["--voxel-size", "2", "0.88", "0.88", "--set", "convert.shard=[32, 64, 64]", "--dry-run"]
    assert main(["convert", str(_strips(tmp_path / "s.tif")), str(tmp_path / "v.zarr"), *settings]) == 0
    said = capsys.readouterr().out
    assert "chunks of 32 × 64 × 64, shards of 32 × 64 × 64, 2 levels, of which 0 are made with level 0" in said
    assert "files     4 for level 0, 5 in all" in said
    assert "scratch   0.000319 GB at a time" in said
    assert "compressed in pieces of 1 × 83 × 101 voxels, and each is decoded once" in said


def _spoiled(folder: Path) -> Path:
    """Slices of which one is whole in its directory and broken in its data."""
    file = _slices(folder, compression="zlib") / "s07.tif"
    content = bytearray(file.read_bytes())
    with tifffile.TiffFile(file) as tif:
        start = tif.pages[0].dataoffsets[0]
    content[start : start + 20] = b"\xff" * 20
    file.write_bytes(content)
    return folder


def test_a_slice_that_cannot_be_read_is_an_error_that_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["convert", str(_spoiled(tmp_path / "raw")), str(tmp_path / "v.zarr"), "--voxel-size", "2", "1", "1"]
    assert main(arguments) == 1
    assert "s07.tif: plane z = 7 could not be read" in capsys.readouterr().err
    assert '"ome"' not in (tmp_path / "v.zarr" / "zarr.json").read_text()


def test_it_can_be_filled_with_zeros_which_are_on_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["convert", str(_spoiled(tmp_path / "raw")), str(tmp_path / "v.zarr"), "--voxel-size", "2", "1", "1"]
    assert main([*arguments, "--on-bad-slice", "fill"]) == 0
    said = capsys.readouterr().out
    assert "1 slice could not be read and is filled with zeros: z = 7" in said
    assert "neurovol.errors" not in said
    wanted = STACK.copy()
    wanted[7] = 0
    np.testing.assert_array_equal(_all_levels(tmp_path / "v.zarr")[0], wanted)
    filled = open_volume(tmp_path / "v.zarr").attributes["filled_slices"]
    assert list(filled) == ["7"]
    assert "s07.tif" in filled["7"]


def test_filling_touches_only_the_broken_slice(tmp_path: Path) -> None:
    source = open_tiff(_spoiled(tmp_path / "raw"))
    box = Box((5, 10, 20), (9, 30, 40))
    array, bad = read_filled(source, box, (0,), np.full((1, *box.shape), 9, np.uint16))
    wanted = STACK[box.slices].copy()
    wanted[2] = 0
    np.testing.assert_array_equal(array[0], wanted)
    assert list(bad) == [7]


def test_workers_are_as_many_as_the_allowed_memory_holds(tmp_path: Path) -> None:
    steps = single_conversion([_slices(tmp_path / "raw")], tmp_path / "v.zarr", [2.0, 1.0, 1.0], None)
    (view,) = steps.samples.values()
    assert copiers([view], 3_000_000_000, cores=64) == 8  # of 300 MB each, beside 300 MB of the driver
    assert copiers([view], 3_000_000_000, cores=2) == 2
    large = replace(view, shard=(512, 8192, 8192), source=replace(view.source, shape=(1, 600, 9000, 9000)))
    with pytest.raises(UserError, match=r"allowed_bytes is 3 GB, but .* takes 9\.09 GB.*smaller convert\.shard"):
        copiers([large], 3_000_000_000, cores=2)


def test_the_ledger_holds_the_checksum_of_every_block(tmp_path: Path) -> None:
    dest = tmp_path / "v.ome.zarr"
    assert main(["convert", str(_slices(tmp_path / "raw")), str(dest), "--voxel-size", "2", "1", "1"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "v.ome.zarr.convert.jsonl").read_text().splitlines()]
    assert sum("crc32c" in row for row in rows) == rows[0]["header"]["total"]


def _two_channels(folder: Path, **options: Any) -> list[str]:
    """A channel a folder of slices, the second the first turned upside down."""
    for name, stack in {"ch0": STACK, "ch1": STACK[:, ::-1]}.items():
        (folder / name).mkdir()
        for z, page in enumerate(stack):
            tifffile.imwrite(folder / name / f"s{z:02}.tif", page, **options)
    return [str(folder / "ch0"), str(folder / "ch1")]


@pytest.mark.parametrize("compression", [None, "zlib"])  # the second through scratch
def test_channels_that_lie_apart_become_one_volume_which_verify_compares_with_them(
    tmp_path: Path, compression: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    sources, dest = _two_channels(tmp_path, compression=compression, rowsperstrip=SHAPE[1]), str(tmp_path / "v.zarr")
    settings = ["--voxel-size", "2", "0.88", "0.88", "--set", "convert.shard=[32, 64, 64]"]
    assert main(["convert", *sources, dest, *settings]) == 0
    whole = VolumeReader(dest).read(Box.of_shape(SHAPE))
    np.testing.assert_array_equal(whole, np.stack([STACK, STACK[:, ::-1]]))
    assert main(["verify", dest, "--source", *sources]) == 0
    assert "are whole and equal to the source" in capsys.readouterr().out
    assert main(["verify", dest, "--source", *sources[::-1]]) == 2
    assert "was converted from another source" in capsys.readouterr().err


def test_a_project_names_the_channels_to_take_of_its_sources(tmp_path: Path) -> None:
    _two_channels(tmp_path)
    file = tmp_path / "project.toml"
    sample = '[[samples]]\nname = "s"\nsource = ["ch0", "ch1"]\nchannels = [1]\nvoxel_size_um = [2, 1, 1]\n'
    file.write_text(f'name = "p"\n{sample}')
    assert main(["convert", str(file)]) == 0
    whole = VolumeReader(str(tmp_path / "stores/p/samples/s/image.ome.zarr")).read(Box.of_shape(SHAPE))
    np.testing.assert_array_equal(whole, STACK[None, :, ::-1])


def test_channels_that_do_not_fit_together_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sources = _two_channels(tmp_path)
    (tmp_path / "ch1/s18.tif").unlink()
    assert main(["convert", *sources, str(tmp_path / "v.zarr"), "--voxel-size", "2", "1", "1"]) == 2
    assert "ch0 has (19, 83, 101) voxels (z, y, x)" in (said := capsys.readouterr().err)
    assert "ch1 has (18, 83, 101)" in said
    assert not (tmp_path / "v.zarr").exists()
