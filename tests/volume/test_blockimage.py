"""The image of a step's blocks: valid, in its place, and whole whenever it is looked at."""

import json
import threading
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr

from neurovol.geometry import BlockGrid
from neurovol.volume.blockimage import BlockImage

GRID = BlockGrid((9, 13, 31), (4, 4, 8), (4, 4, 8))  # 3 × 4 × 4 blocks, the last cut along each axis
VOXEL_SIZE_UM = (5.0, 2.0, 0.5)
MEANINGS = ((0, "not yet", "00000000"), (1, "done", "2CA02C80"), (4, "set aside", "D62728FF"))
SECONDS = np.arange(48, dtype=np.float32)
STATES = np.array([0, 1, 1, 4] * 12, np.uint8)


@pytest.fixture
def image(tmp_path: Path) -> BlockImage:
    image = BlockImage(tmp_path / "progress" / "convert.ome.zarr", "convert a", GRID, VOXEL_SIZE_UM, MEANINGS)
    image.create(SECONDS, STATES)
    return image


def ome(folder: Path) -> dict:
    return json.loads((folder / "zarr.json").read_text())["attributes"]["ome"]


def test_each_block_has_its_voxel(image: BlockImage) -> None:
    seconds, states = (zarr.open_array(image.path / part, mode="r")[...] for part in ("0", "labels/states/0"))
    assert (seconds.dtype, states.dtype) == (np.float32, np.uint8)
    assert seconds.shape == states.shape == (3, 4, 4)
    for block in GRID:
        voxel = tuple(a // b for a, b in zip(block.write.start, GRID.block, strict=True))
        assert (seconds[voxel], states[voxel]) == (block.index, STATES[block.index])


@pytest.mark.parametrize("part", ["", "labels/states"])
def test_a_blocks_voxel_lies_where_its_voxels_lie(image: BlockImage, part: str) -> None:
    (dataset,) = ome(image.path / part)["multiscales"][0]["datasets"]
    scale, shift = (t[t["type"]] for t in dataset["coordinateTransformations"])
    for block in (GRID[0], GRID[5], GRID[22]):  # none of those that the volume's end cuts
        voxel = [a // b for a, b in zip(block.write.start, GRID.block, strict=True)]
        centre = [s * v + t for s, v, t in zip(scale, voxel, shift, strict=True)]
        # the first voxel's centre is at 0, as in the image
        middle = [(a + b - 1) / 2 * um for (a, b), um in zip(block.write.pairs, VOXEL_SIZE_UM, strict=True)]
        assert centre == pytest.approx(middle)


def test_it_is_valid_ome_zarr_whose_labels_have_names_and_colours(image: BlockImage) -> None:
    from ome_zarr_models.v05 import Image
    from ome_zarr_models.v05.image_label import ImageLabel
    from ome_zarr_models.v05.labels import Labels

    with warnings.catch_warnings():  # of pydantic, about the models themselves
        warnings.simplefilter("ignore")
        shown = Image.from_zarr(zarr.open_group(image.path, mode="r"))
        assert Labels.from_zarr(zarr.open_group(image.path / "labels", mode="r")).label_paths == ["states"]
        label = ImageLabel.from_zarr(zarr.open_group(image.path / "labels/states", mode="r"))
    assert [axis.name for axis in shown.attributes.ome.multiscales[0].axes] == ["z", "y", "x"]
    marked = label.attributes.ome.image_label
    assert {c.label_value: c.rgba for c in marked.colors}[4] == (0xD6, 0x27, 0x28, 0xFF)
    named = ome(image.path / "labels/states")["image-label"]["properties"]
    assert [(p["label-value"], p["name"]) for p in named] == [(0, "not yet"), (1, "done"), (4, "set aside")]


def test_viewers_show_its_seconds_up_to_all_but_the_longest(image: BlockImage) -> None:
    seconds = np.full(48, 2.0, np.float32)
    (channel,) = ome(image.path)["omero"]["channels"]
    assert channel["window"]["end"] == pytest.approx(np.percentile(np.arange(1, 48), 99))
    image.update(seconds, STATES)
    (channel,) = ome(image.path)["omero"]["channels"]
    assert (channel["label"], channel["window"]) == ("seconds", {"min": 0, "max": 2.0, "start": 0.0, "end": 2.0})


def test_before_any_block_is_done_there_is_an_image_too(image: BlockImage) -> None:
    image.create(np.zeros(48, np.float32), np.zeros(48, np.uint8))
    assert not zarr.open_array(image.path / "0", mode="r")[...].any()
    image.update(SECONDS, STATES)
    assert np.array_equal(zarr.open_array(image.path / "0", mode="r")[...].ravel(), SECONDS)


def test_an_image_of_other_blocks_is_replaced(image: BlockImage) -> None:
    other = replace(image, grid=BlockGrid((7, 13, 31), (7, 13, 31), (7, 13, 31)))
    (image.path.with_name("convert.ome.zarr.partial")).mkdir()  # of a driver that was killed
    other.create(np.ones(1, np.float32), np.ones(1, np.uint8))
    assert zarr.open_array(image.path / "labels/states/0", mode="r").shape == (1, 1, 1)
    assert [p.name for p in image.path.parent.iterdir()] == ["convert.ome.zarr"]


def test_who_looks_while_it_is_rewritten_sees_it_whole(tmp_path: Path) -> None:
    grid = BlockGrid((40, 40, 40), (1, 1, 1), (1, 1, 1))
    image = BlockImage(tmp_path / "i.ome.zarr", "convert a", grid, VOXEL_SIZE_UM, MEANINGS)
    noise = np.random.default_rng(0).random(len(grid), np.float32)  # as long in bytes as any
    states = np.zeros(len(grid), np.uint8)
    image.create(noise, states)
    seen, ended = set(), threading.Event()

    def look() -> None:
        while not ended.is_set():
            found = zarr.open_array(image.path / "0", mode="r")[...].ravel()
            seen.add(tuple(np.unique(np.round(found - noise))))

    thread = threading.Thread(target=look)
    thread.start()
    for n in range(1, 41):
        image.update(noise + n, states)
    ended.set()
    thread.join()
    assert len(seen) > 1
    assert all(len(values) == 1 for values in seen)
