"""TIFFs of more than 2³² bytes, real files that are nearly all hole: boxes are read on either side of that border."""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from neurovol.geometry import Box
from neurovol.volume.tiff import open_tiff

BORDER = 2**32  # bytes: where offsets no longer fit a classic TIFF's 32 bits
SHAPE = (6, 20000, 20011)  # z, y, x of uint16: 4.8 GB

WAYS = {
    "BigTIFF": {"bigtiff": True, "metadata": None},  # its directories, but for the first, lie beyond the border
    "big-endian": {"bigtiff": True, "byteorder": ">"},
    "OME": {"bigtiff": True, "ome": True, "metadata": {"axes": "ZYX"}},
    "one directory": {"bigtiff": True, "truncate": True},
    "ImageJ": {"imagej": True, "metadata": {"axes": "ZYX"}, "truncate": True},  # 32 bits, one directory, data go on
}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where a test makes its files, which take next to no room."""
    yield tmp_path
    files = list(tmp_path.glob("*.tif"))
    assert sum(file.stat().st_size for file in files) > BORDER
    assert sum(file.stat().st_blocks * 512 for file in files) < 4_000_000


def _drawn(file: Path, boxes: list[Box], options: dict[str, Any]) -> list[np.ndarray]:
    """A stack of zeros but for noise in these boxes; the noise."""
    stack = tifffile.memmap(file, shape=SHAPE, dtype="uint16", photometric="minisblack", **options)
    noise = [np.random.default_rng(i).integers(1, 60000, box.shape).astype(np.uint16) for i, box in enumerate(boxes)]
    for box, voxels in zip(boxes, noise, strict=True):
        stack[box.slices] = voxels
    stack.flush()
    return noise


def _row_of_byte(byte: int) -> tuple[int, int]:
    """(z, y) of the row that holds a byte of the voxels."""
    row = byte // (SHAPE[2] * 2)
    return row // SHAPE[1], row % SHAPE[1]


@pytest.mark.filterwarnings("ignore:.*truncating ImageJ file")
@pytest.mark.parametrize("way", WAYS)
def test_boxes_are_read_on_both_sides_of_the_border_and_across(folder: Path, way: str) -> None:
    z, y = _row_of_byte(BORDER)  # or the row before: voxels begin at byte 4096, a row has 40 kB
    last = SHAPE[0] - 1
    boxes = [
        Box((0, 0, 0), (1, 3, 50)),
        Box((z, y - 3, 0), (z + 1, y + 4, SHAPE[2])),
        Box((last, 77, 19000), (last + 1, 80, SHAPE[2])),
        Box((last, SHAPE[1] - 2, SHAPE[2] - 9), SHAPE),  # to the last voxel
    ]
    noise = _drawn(folder / "s.tif", boxes, WAYS[way])
    source = open_tiff(folder / "s.tif")
    assert (source.shape, source.grain) == ((1, *SHAPE), (1, 1, 1))
    for box, voxels in zip(boxes, noise, strict=True):
        np.testing.assert_array_equal(source.read(box, (0,))[0], voxels)
    (before, after) = source.read(Box((z - 1, y - 3, 5), (z + 1, y + 4, 900)), (0,))[0]
    assert not before.any()
    np.testing.assert_array_equal(after, noise[1][0, :, 5:900])
    assert not source.read(Box((last, 80, 0), (last + 1, 90, 300)), (0,)).any()


def _write_strips(file: Path, planes: np.ndarray, places: list[int]) -> None:
    """A BigTIFF of a zlib strip a page, each page's strip and then its directory at the place given, in bytes."""
    strips = [zlib.compress(plane.tobytes()) for plane in planes]
    directories = [(place + len(strip) + 7) // 8 * 8 for place, strip in zip(places, strips, strict=True)]
    with file.open("wb") as out:
        out.write(struct.pack("<2sHHHQ", b"II", 43, 8, 0, directories[0]))
        for place, strip, at, following in zip(places, strips, directories, [*directories[1:], 0], strict=True):
            length, width = planes.shape[1:]
            tags = {256: width, 257: length, 258: 16, 259: 8, 262: 1, 273: place, 277: 1, 278: length, 279: len(strip)}
            out.seek(place)
            out.write(strip)
            out.seek(at)
            out.write(struct.pack("<Q", len(tags)))
            for tag, value in tags.items():
                out.write(struct.pack("<HHQQ", tag, 16, 1, value))  # 16: of 8 bytes, unsigned
            out.write(struct.pack("<Q", following))


def test_compressed_strips_are_read_before_after_and_across_the_border(folder: Path) -> None:
    planes = np.random.default_rng(0).integers(0, 60000, (5, 37, 53)).astype(np.uint16)
    _write_strips(folder / "s.tif", planes, [16, BORDER - 70_000, BORDER - 1000, BORDER + 70_000, 3 * BORDER + 11])
    np.testing.assert_array_equal(tifffile.imread(folder / "s.tif"), planes)  # the file is as meant
    source = open_tiff(folder / "s.tif")
    assert source.grain == (1, 37, 53)
    np.testing.assert_array_equal(source.read(Box.of_shape(planes.shape), (0,))[0], planes)
    np.testing.assert_array_equal(source.read(Box((2, 3, 4), (5, 30, 50)), (0,))[0], planes[2:, 3:30, 4:50])
