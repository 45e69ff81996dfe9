"""What a plan says of the disk: never less than is taken, and not much more where nothing compresses."""

from pathlib import Path

import numpy as np
import pytest
import tifffile

from neurovol.cli import main
from neurovol.project import State, open_project
from neurovol.stages.disk import DiskNeed, conversion_need, scratch_need, shard_counts
from neurovol.stages.order import actions
from neurovol.stages.single import single_conversion
from neurovol.stages.steps import Steps
from tests.tiny import write_tiny


def taken(*places: Path) -> DiskNeed:
    """Bytes and inodes of files and folders, with all that is in them."""
    found = [path for place in places for path in (place, *place.rglob("*"))]
    return DiskNeed(sum(path.stat().st_size for path in found if path.is_file()), len(found))


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a stack that no codec makes smaller."""
    file = tmp_path_factory.mktemp("noise") / "noise.tif"
    voxels = np.random.default_rng(0).integers(0, 2**16, (23, 150, 170), np.uint16)
    tifffile.imwrite(file, voxels, photometric="minisblack")
    return file


SETTINGS = {"convert.chunk": [8, 32, 32], "convert.shard": [16, 64, 64]}


def test_a_conversion_takes_no_more_than_its_plan_says_and_little_less(noise: Path, tmp_path: Path) -> None:
    dest = tmp_path / "noise.ome.zarr"
    settings = [text for key, value in SETTINGS.items() for text in ("--set", f"{key}={value}")]
    assert main(["convert", str(noise), str(dest), "--voxel-size", "2", "1", "1", *settings]) == 0
    steps = single_conversion([noise], tmp_path / "again.ome.zarr", [2.0, 1.0, 1.0], None, SETTINGS)
    view = steps.samples["image"]
    need, found = conversion_need(view), taken(dest)
    assert found.bytes < need.bytes
    assert found.inodes < need.inodes
    image = sum(shard_counts(view))
    assert need.inodes < 4 * image + 100
    # histograms of 65536 values for each block are most of what is reckoned with, and are gone in the end
    assert need.bytes < 3 * found.bytes + image * (1 + view.fused) * 16 * 2**16 + 2**24


def test_every_step_of_a_finished_project_took_no_more_than_was_planned(finished: Path, tmp_path: Path) -> None:
    fresh = Steps(open_project(write_tiny(tmp_path)))
    planned = {a.step.name: plan.disk for a in actions(fresh) for plan in a.plan()}
    for action in actions(Steps(open_project(finished))):
        found, need = taken(action.step.output, action.step.ledger), planned[action.step.name]
        if action.step.stage != "evaluate" or action.sample is not None:  # metrics.json is a page of text
            assert found.bytes <= need.bytes, action.step.name
            assert found.inodes <= need.inodes, action.step.name


def test_what_is_done_needs_no_disk_more(finished: Path) -> None:
    plans = [plan for action in actions(Steps(open_project(finished))) for plan in action.plan()]
    assert {(plan.state, bool(plan.disk)) for plan in plans} == {("done", False)}
    assert not any("  disk" in line for plan in plans for line in plan.lines)


@pytest.mark.parametrize(
    ("state", "left"),
    [
        (State("missing"), DiskNeed(1001, 10)),
        (State("stale", done=9, total=9), DiskNeed(1001, 10)),  # built beside the old one
        (State("begun", done=5, total=10), DiskNeed(501, 5)),
        (State("done", done=10, total=10), DiskNeed(0, 0)),
    ],
)
def test_what_is_left_of_a_need(state: State, left: DiskNeed) -> None:
    assert DiskNeed(1001, 10).left(state) == left


def test_a_plan_says_how_much_disk_it_takes_at_most(noise: Path, tmp_path: Path, capsys) -> None:
    assert main(["convert", str(noise), str(tmp_path / "x.ome.zarr"), "--voxel-size", "2", "1", "1", "--dry-run"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  disk")]
    assert line.startswith("  disk      at most ")
    assert line.endswith(" files and folders more")


def test_slices_of_one_strip_are_decoded_to_scratch_a_file_each(tmp_path: Path) -> None:
    file = tmp_path / "strips.tif"
    voxels = np.random.default_rng(0).integers(0, 99, (20, 130, 140), np.uint16)
    tifffile.imwrite(file, voxels, photometric="minisblack", compression="zlib", rowsperstrip=130)
    steps = single_conversion([file], tmp_path / "x.ome.zarr", [2.0, 1.0, 1.0], None, SETTINGS)
    assert scratch_need(steps.samples["image"]) == DiskNeed(16 * 130 * 140 * 2, 17)
