"""Quick decoders: the same voxels as tifffile, and an error wherever it has one."""

import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neurovol.errors import Failure
from neurovol.geometry import Box
from neurovol.volume.tiff import open_tiff
from neurovol.volume.tiffmap import _cache, map_file

STACK = np.random.default_rng(0).integers(0, 60000, (5, 37, 53)).astype(np.uint16)
LAYOUTS = {
    "one strip": {"rowsperstrip": 37},
    "odd strips": {"rowsperstrip": 7},
    "single rows": {"rowsperstrip": 1},
    "strips beyond the page": {"rowsperstrip": 100},
    "tiles": {"tile": (16, 32)},
    "a tile beyond the page": {"tile": (64, 64)},
}
ENCODE = {"lzw": imagecodecs.lzw_encode, "zlib": zlib.compress}

boxes = st.builds(
    lambda *pairs: Box.from_pairs(sorted(p) for p in pairs),
    *(st.tuples(st.integers(0, n), st.integers(0, n)) for n in STACK.shape),
)


def _stamp(file: Path) -> tuple[int, int]:
    return file.stat().st_size, file.stat().st_mtime_ns


def _refuse(*_: Any, **__: Any) -> None:
    raise AssertionError("tifffile should not have been asked")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["<u2", ">u2", "u1"])
@pytest.mark.parametrize("predictor", [False, True])
@pytest.mark.parametrize("compression", ENCODE)
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(box=boxes)
def test_every_quick_decoder_gives_what_tifffile_gives(tmp_path, compression, predictor, dtype, layout, box):
    file = tmp_path / "s.tif"
    if not file.exists():
        order = ">" if dtype[0] == ">" else "<"
        how = {"compression": compression, "predictor": predictor, "byteorder": order, "photometric": "minisblack"}
        tifffile.imwrite(file, STACK.astype(dtype), metadata={"axes": "ZYX"}, **how, **LAYOUTS[layout])
    whole = tifffile.imread(file)
    np.testing.assert_array_equal(open_tiff(file).read(box, (0,))[0], whole[box.slices])
    by_codec = replace(map_file(file, _stamp(file)), decode=_refuse)
    assert by_codec.codec is not None
    with file.open("rb") as handle:
        np.testing.assert_array_equal(by_codec.read_plane(handle, 0, 1, box.slices[1:]), whole[1][box.slices[1:]])


@pytest.mark.parametrize("compression", ENCODE)
def test_planes_of_channels_are_decoded_quickly_too(tmp_path, compression):
    stack = np.random.default_rng(2).integers(0, 255, (5, 3, 7, 9)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "s.tif", stack, photometric="rgb", planarconfig="separate", compression=compression)
    source = open_tiff(tmp_path / "s.tif")
    assert map_file(tmp_path / "s.tif", _stamp(tmp_path / "s.tif")).codec is not None
    read = source.read(Box((1, 0, 0), (4, 7, 9)), (2, 0))
    np.testing.assert_array_equal(read, stack[1:4, [2, 0]].swapaxes(0, 1))


@pytest.mark.parametrize(
    ("dtype", "shape", "how"),
    [
        (np.uint16, (5, 7, 9), {"compression": "zstd"}),
        (np.uint16, (5, 7, 9), {"compression": "packbits"}),
        (np.uint8, (5, 7, 9, 3), {"compression": "lzw", "photometric": "rgb"}),
        (np.uint8, (5, 7, 9, 3), {"compression": "zlib", "photometric": "rgb", "predictor": True}),
        (np.uint8, (5, 16, 16), {"compression": "jpeg2000"}),
    ],
)
def test_unusual_kinds_are_left_to_tifffile(tmp_path, dtype, shape, how):
    stack = np.random.default_rng(3).integers(0, 255, shape).astype(dtype)
    tifffile.imwrite(tmp_path / "s.tif", stack, **{"photometric": "minisblack", **how})
    assert map_file(tmp_path / "s.tif", _stamp(tmp_path / "s.tif")).codec is None
    source = open_tiff(tmp_path / "s.tif")
    read = source.read(Box.of_shape(stack.shape[:3]), tuple(range(source.shape[0])))
    whole = tifffile.imread(tmp_path / "s.tif")
    np.testing.assert_array_equal(read, np.moveaxis(whole, -1, 0) if whole.ndim == 4 else whole[None])


@pytest.mark.parametrize("layout", ["one strip", "tiles"])
def test_a_view_that_lies_apart_is_filled_and_nothing_beside_it(tmp_path, layout):
    tifffile.imwrite(tmp_path / "s.tif", STACK, compression="lzw", **LAYOUTS[layout])
    out = np.full((1, 5, 40, 60), 7, np.uint16)
    open_tiff(tmp_path / "s.tif").read(Box.of_shape(STACK.shape), (0,), out[:, :, 1:38, 2:55])
    np.testing.assert_array_equal(out[0, :, 1:38, 2:55], STACK)
    out[0, :, 1:38, 2:55] = 7
    assert (out == 7).all()


def test_what_a_box_holds_whole_is_not_kept(tmp_path):
    tifffile.imwrite(tmp_path / "s.tif", STACK, compression="lzw", tile=(16, 16))
    source = open_tiff(tmp_path / "s.tif")
    before = len(_cache._held)
    source.read(Box.of_shape(STACK.shape), (0,))
    assert len(_cache._held) == before
    source.read(Box((0, 3, 3), (5, 14, 14)), (0,))
    assert len(_cache._held) > before


def _segments(file: Path, compression: str, pieces: list[np.ndarray], **layout: Any) -> Path:
    """One page of 37 × 53 in pieces as they are given, whatever their size."""
    encoded = (ENCODE[compression](np.ascontiguousarray(piece).tobytes()) for piece in pieces)
    shape = {"shape": (37, 53), "dtype": np.uint16}
    with tifffile.TiffWriter(file) as writer:
        writer.write(encoded, compression=compression, metadata=None, **shape, **layout)
    return file


@pytest.mark.parametrize("compression", ENCODE)
def test_a_strip_of_too_few_rows_is_a_failure_and_leaves_nothing_stale(tmp_path, compression):
    rows = [STACK[0, :10], STACK[0, 10:19], STACK[0, 20:30], STACK[0, 30:]]  # the second lacks one
    source = open_tiff(_segments(tmp_path / "s.tif", compression, rows, rowsperstrip=10))
    np.testing.assert_array_equal(source.read(Box((0, 20, 0), (1, 37, 53)), (0,))[0], STACK[:1, 20:])
    for _ in range(2):
        with pytest.raises(Failure, match=r"s\.tif: plane z = 0 could not be read: corrupted strip"):
            source.read(Box((0, 0, 0), (1, 37, 53)), (0,), np.empty((1, 1, 37, 53), np.uint16))
        with pytest.raises(Failure, match=r"s\.tif: plane z = 0 could not be read: corrupted strip"):
            source.read(Box((0, 12, 3), (1, 14, 9)), (0,))


def test_a_strip_of_too_many_rows_is_read_without_them(tmp_path):
    padded = np.concatenate([STACK[0, 30:], STACK[1, :3]])
    rows = [STACK[0, :10], STACK[0, 10:20], STACK[0, 20:30], padded]
    source = open_tiff(_segments(tmp_path / "s.tif", "lzw", rows, rowsperstrip=10))
    np.testing.assert_array_equal(source.read(Box((0, 0, 0), (1, 37, 53)), (0,))[0], STACK[:1])


@pytest.mark.parametrize("compression", ENCODE)
def test_tiles_stored_without_what_lies_beyond_the_page_are_read(tmp_path, compression):
    tiles = [STACK[0, y : y + 32, x : x + 32] for y in (0, 32) for x in (0, 32)]
    source = open_tiff(_segments(tmp_path / "s.tif", compression, tiles, tile=(32, 32)))
    for box in (Box((0, 0, 0), (1, 37, 53)), Box((0, 33, 40), (1, 36, 50))):
        np.testing.assert_array_equal(source.read(box, (0,))[0], STACK[:1][box.slices])


@pytest.mark.parametrize("spoiled", [0, 1])
@pytest.mark.parametrize("compression", ENCODE)
def test_a_spoiled_strip_is_a_failure_that_names_file_and_plane(tmp_path, compression, spoiled):
    file = tmp_path / "s.tif"
    tifffile.imwrite(file, STACK, compression=compression, rowsperstrip=20)
    with tifffile.TiffFile(file) as tif:
        start, count = (tif.pages[2].dataoffsets[spoiled], tif.pages[2].databytecounts[spoiled])
    with file.open("r+b") as handle:
        handle.seek(start + count // 2)
        handle.write(b"\xff" * (count // 3))
    source = open_tiff(file)
    np.testing.assert_array_equal(source.read(Box((0, 0, 0), (2, 37, 53)), (0,))[0], STACK[:2])
    with pytest.raises(Failure, match=r"s\.tif: plane z = 2 could not be read"):
        source.read(Box((1, 0, 0), (3, 37, 53)), (0,))
