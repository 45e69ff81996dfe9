"""Seams are found where there are some, and none where there are none."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from neurovol.cli import main
from neurovol.geometry import BlockGrid, Box, Zyx, zyx
from neurovol.stages.checkblocks import Face, seam_of, some_faces
from neurovol.stages.cover import Cover
from neurovol.stages.skip import Where
from neurovol.volume.omezarr import VolumeReader, VolumeWriter, create_volume, open_volume
from tests.stages.test_cover import Held

SHAPE, SHARD = (16, 64, 96), (16, 32, 32)


def blurred(raw: NDArray[Any]) -> NDArray[np.float32]:
    """A kernel that looks 2 voxels far, and sees nothing beyond what it is given, as a network does."""
    found: NDArray[np.float32] = ndimage.uniform_filter(raw[0].astype(np.float32) / 1000, 5, mode="constant")
    return found


def _covered(folder: Path, window: Zyx, halo: Zyx = (4, 4, 4)) -> tuple[Cover, VolumeReader]:
    """An image in memory, blurred block by block; the cover as it should be, and what was written."""
    create_volume(folder / "v", shape=SHAPE, channels=None, dtype="uint8", voxel_size_um=(2, 1, 1), chunk=(16, 16, 16),
                  shard=SHARD, factors=[])  # fmt: skip
    image = Held(np.random.default_rng(0).integers(0, 1000, (1, *SHAPE)).astype(np.uint16))
    writer, whole = VolumeWriter(str(folder / "v")), (Box.of_shape(SHAPE),)
    cover = Cover(image, blurred, writer, SHAPE, whole, window, (4, 4, 4), (4, 4, 4))
    for block in BlockGrid(SHAPE, SHARD, SHARD):
        replace(cover, halo=halo)(block)
    return cover, VolumeReader(str(folder / "v"), allow_incomplete=True)


def _faces(cover: Cover) -> list[Face]:
    return list(some_faces(cover, SHARD, 12, random.Random(1)))


@pytest.mark.parametrize("window", [(8, 16, 16), (16, 32, 32), (4, 12, 20)])
def test_a_right_output_shows_no_seam(tmp_path: Path, window: Zyx) -> None:
    cover, stored = _covered(tmp_path, window)
    faces = _faces(cover)
    assert {face.between for face in faces} == ({"blocks"} if window == SHARD else {"blocks", "windows"})
    assert all(seam_of(cover, stored, face).difference < 1e-5 for face in faces)


def test_too_small_a_halo_shows(tmp_path: Path) -> None:
    cover, stored = _covered(tmp_path, (8, 16, 16), halo=(0, 0, 0))
    assert max(seam_of(cover, stored, face).difference for face in _faces(cover)) > 0.01


def test_faces_lie_where_blocks_and_windows_meet(tmp_path: Path) -> None:
    cover, _ = _covered(tmp_path, (8, 16, 16))
    for face in _faces(cover):
        assert face.at % (SHARD if face.between == "blocks" else cover.window)[face.axis] == 0
        a, b = face.box.pairs[face.axis]
        assert a < face.at < b
        assert Box.of_shape(SHAPE).contains(face.box)


def test_faces_lie_where_something_is_predicted(tmp_path: Path) -> None:
    cover, _ = _covered(tmp_path, (8, 16, 16))
    mask = np.zeros(SHAPE, np.uint8)
    mask[2, 30:34, 40] = 1  # astride a face, and nowhere else
    masked = replace(cover, where=Where(Held(mask[None]), (1, 1, 1)))
    faces = _faces(masked)
    assert faces
    assert all(mask[face.box.slices].any() for face in faces)


def test_a_finished_project_is_checked_and_a_wrong_plane_is_named(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "faces.json"
    assert main(["check-blocks", str(copied), "--faces", "2", "--json", str(report)]) == 0
    said = capsys.readouterr().out
    for step in ("pseudolabel a", "segment a", "segment b", "evaluate b cnn2d", "evaluate b unet3d_sparse"):
        assert f"{step}: " in said
    assert all(checked["is_right"] for checked in json.loads(report.read_text()))

    (store,) = copied.parent.glob("stores/tiny/samples/a/unet3d@*.ome.zarr")
    shard, shape = open_volume(store).shard(0), open_volume(store).shape
    block = Box((0, 0, 0), zyx(min(s, n) for s, n in zip(shard, shape, strict=True)))
    voxels = VolumeReader(str(store)).read(block)
    voxels[..., -1] = 255 - voxels[..., -1]  # next to the face that all blocks along x have
    VolumeWriter(str(store)).write(block, voxels)
    assert main(["check-blocks", str(copied), "--sample", "a", "--faces", "9"]) == 1
    told = capsys.readouterr()
    assert "blocks or windows show, worst at: segment a, blocks at" in told.err
    assert f", {shard[2] - 1}]" in told.err  # the voxel
    assert "Traceback" not in told.err


def test_without_predictions_there_is_nothing_to_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.tiny import write_tiny

    assert main(["check-blocks", str(write_tiny(tmp_path))]) == 2
    assert "no prediction is finished yet" in capsys.readouterr().err
    assert main(["check-blocks", str(tmp_path / "project.toml"), "--faces", "0"]) == 2
    assert "at least one face" in capsys.readouterr().err
