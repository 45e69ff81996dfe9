"""Scratch files of decoded planes: read as the source would be, and refused where they are not whole."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neurovol.errors import Failure
from neurovol.geometry import Box
from neurovol.volume import planefile
from neurovol.volume.tiff import open_tiff
from neurovol.volume.unpacked import Unpack, Unpacked, planes_of, record_failure

STACK = np.random.default_rng(0).integers(0, 60000, (2, 5, 37, 53)).astype(np.uint16)  # c, z, y, x

boxes = st.builds(
    lambda *pairs: Box.from_pairs(sorted(p) for p in pairs),
    *(st.tuples(st.integers(0, n), st.integers(0, n)) for n in STACK.shape[1:]),
)


def _unpacked(folder: Path, channels: tuple[int, ...] = (0, 1)) -> Unpacked:
    """LZW in strips, big-endian, with a predictor: decoded once per folder."""
    if not (folder / "scratch").exists():
        how = {"compression": "lzw", "predictor": True, "byteorder": ">", "rowsperstrip": 10}
        tifffile.imwrite(folder / "s.ome.tif", STACK, metadata={"axes": "CZYX"}, photometric="minisblack", **how)
        (folder / "scratch").mkdir()
        source = open_tiff(folder / "s.ome.tif")
        for plane in planes_of(Box.of_shape(STACK.shape[1:])):
            Unpack(source, channels, str(folder / "scratch"))(plane)
    return Unpacked(str(folder / "scratch"), STACK.shape, STACK.dtype, channels)


@pytest.mark.parametrize("most_read", [6, 0], ids=["read", "mapped"])
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(box=boxes, channels=st.sampled_from([(0,), (1,), (0, 1), (1, 0)]))
def test_any_box_is_the_same_crop_of_the_whole(tmp_path, monkeypatch, most_read, box, channels):
    monkeypatch.setattr(planefile, "MOST_READ", most_read)
    unpacked = _unpacked(tmp_path)
    wanted = STACK[list(channels)][(slice(None), *box.slices)]
    np.testing.assert_array_equal(unpacked.read(box, channels), wanted)
    out = np.full((len(channels), *(n + 1 for n in box.shape)), 7, np.uint16)
    unpacked.read(box, channels, out[:, :-1, :-1, :-1])
    np.testing.assert_array_equal(out[:, :-1, :-1, :-1], wanted)


def test_there_is_one_file_per_plane_of_the_wanted_channels(tmp_path):
    unpacked = _unpacked(tmp_path, (1,))
    files = sorted((tmp_path / "scratch").iterdir())
    assert [file.name for file in files] == [f"{z}.raw" for z in range(5)]
    assert {file.stat().st_size for file in files} == {37 * 53 * 2}
    np.testing.assert_array_equal(unpacked.read(Box.of_shape(STACK.shape[1:]), (1,)), STACK[1:])


def test_a_plane_does_not_change_those_decoded_before_it(tmp_path):
    (tmp_path / "scratch").mkdir()
    tifffile.imwrite(tmp_path / "s.tif", STACK[0], compression="zlib")
    unpack = Unpack(open_tiff(tmp_path / "s.tif"), (0,), str(tmp_path / "scratch"))
    for plane in reversed(planes_of(Box.of_shape(STACK.shape[1:]))):
        unpack(plane)
    for z in range(5):
        assert (tmp_path / "scratch" / f"{z}.raw").read_bytes() == STACK[0, z].tobytes()


def test_a_plane_that_could_not_be_decoded_says_why(tmp_path):
    unpacked = _unpacked(tmp_path)
    (tmp_path / "scratch" / "3.raw").unlink()
    with pytest.raises(Failure, match=r"scratch/3\.raw: is gone; run again"):
        unpacked.read(Box((2, 0, 0), (4, 5, 5)), (0,))
    record_failure(unpacked.folder, 3, "s.tif: plane z = 3 could not be read")
    with pytest.raises(Failure, match=r"^s\.tif: plane z = 3 could not be read$"):
        unpacked.read(Box((2, 0, 0), (4, 5, 5)), (0,))


@pytest.mark.parametrize("cols", [(0, 53), (10, 50), (7, 8)], ids=["all", "most", "one"])
def test_a_scratch_file_cut_short_is_a_failure(tmp_path, cols):
    unpacked = _unpacked(tmp_path)
    with (tmp_path / "scratch" / "3.raw").open("r+b") as file:
        file.truncate(2 * 37 * 53 * 2 - 1)
    box = Box((2, 30, cols[0]), (4, 37, cols[1]))
    np.testing.assert_array_equal(unpacked.read(box, (0,)), STACK[:1][(slice(None), *box.slices)])
    with pytest.raises(Failure, match=r"3\.raw: decoded plane z = 3 could not be read: .*; run again"):
        unpacked.read(box, (1,))


def test_a_plane_that_cannot_be_written_leaves_nothing_behind(tmp_path):
    tifffile.imwrite(tmp_path / "s.tif", STACK[0], compression="zlib")
    unpack = Unpack(open_tiff(tmp_path / "s.tif"), (0,), str(tmp_path / "nowhere"))
    with pytest.raises(Failure, match=r"nowhere/0\.raw: could not be written"):
        unpack(planes_of(Box.of_shape(STACK.shape[1:]))[0])
