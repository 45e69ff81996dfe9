"""Channels that lie apart, a folder or file each, are one source."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from neurovol.errors import Failure, UserError
from neurovol.geometry import Box
from neurovol.samplesettings import Sample
from neurovol.volume.channels import JoinedChannels, join_channels
from neurovol.volume.source import open_source, voxel_size_of
from neurovol.volume.tiff import open_tiff

STACKS = np.random.default_rng(0).integers(0, 60000, (4, 7, 13, 31)).astype(np.uint16)  # c, z, y, x
WHOLE = Box.of_shape(STACKS.shape[1:])


def _slices(folder: Path, stack: np.ndarray, **options: Any) -> Path:
    folder.mkdir()
    for z, plane in enumerate(stack):
        tifffile.imwrite(folder / f"s{z}.tif", plane, **options)
    return folder


def _imagej(file: Path, stack: np.ndarray, spacing: float = 2.0) -> Path:
    """A stack that tells its voxels: `spacing` × 1 × 1 µm; one of (z, c, y, x) has channels."""
    metadata = {"axes": "ZYX" if stack.ndim == 3 else "ZCYX", "spacing": spacing, "unit": "um"}
    tifffile.imwrite(file, stack, imagej=True, resolution=(1, 1), metadata=metadata)
    return file


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    """A folder of slices, a stack of two channels, and one of compressed strips; four channels together."""
    strips = tmp_path / "ch3.tif"
    tifffile.imwrite(strips, STACKS[3], compression="zlib", rowsperstrip=5)
    two = _imagej(tmp_path / "ch1-2.tif", STACKS[1:3].swapaxes(0, 1))
    return [_slices(tmp_path / "ch0", STACKS[0]), two, strips]


def test_channels_are_counted_through_the_sources_in_their_order(three: list[Path]) -> None:
    source = join_channels(three)
    assert (source.shape, source.dtype) == (STACKS.shape, np.uint16)
    np.testing.assert_array_equal(source.read(WHOLE, (0, 1, 2, 3)), STACKS)
    turned = join_channels(three[::-1])
    np.testing.assert_array_equal(turned.read(WHOLE, (0, 1, 2, 3)), STACKS[[3, 1, 2, 0]])


@pytest.mark.parametrize("channels", [(2,), (3, 0), (1, 3, 2), (2, 1, 0, 3)])
def test_any_channels_of_any_box_are_read_in_the_order_asked_for(three: list[Path], channels: tuple[int, ...]) -> None:
    source, box = pickle.loads(pickle.dumps(join_channels(three))), Box((1, 2, 3), (6, 11, 30))
    wanted = STACKS[(list(channels), *box.slices)]
    np.testing.assert_array_equal(source.read(box, channels), wanted)
    spread = np.zeros((2 * len(channels), *box.shape), np.uint16)
    assert source.read(box, channels, spread[::2]).base is spread
    np.testing.assert_array_equal(spread[::2], wanted)
    assert not spread[1::2].any()


def test_channels_of_one_source_are_read_in_one_call(three: list[Path]) -> None:
    calls = []

    class Noting:
        shape, dtype, grain = (2, 7, 13, 31), np.dtype(np.uint16), (1, 1, 1)

        def read(self, box: Box, channels: tuple[int, ...], out: np.ndarray) -> np.ndarray:
            calls.append(channels)
            return out

    JoinedChannels((open_tiff(three[0]), Noting(), Noting())).read(WHOLE, (1, 2, 0, 3))
    assert calls == [(0, 1), (0,)]


def test_the_grain_is_the_largest_along_each_axis(tmp_path: Path, three: list[Path]) -> None:
    assert join_channels(three[:2]).grain == (1, 1, 1)
    assert join_channels(three).grain == (1, 5, 31)
    tifffile.imwrite(tmp_path / "tiles.tif", STACKS[0], compression="zlib", tile=(16, 16))
    assert join_channels([three[2], tmp_path / "tiles.tif"]).grain == (1, 16, 31)


def test_the_voxel_size_is_that_of_the_source_that_tells_it(three: list[Path]) -> None:
    assert join_channels(three).voxel_size_um == pytest.approx((2, 1, 1))
    assert join_channels(three[::2]).voxel_size_um is None


def test_the_identity_is_that_of_every_source_in_order(three: list[Path]) -> None:
    identity = join_channels(three).identity()
    assert identity["sources"] == [open_tiff(path).identity() for path in three]
    assert identity["kind"] == "channels of 3 sources (folder of TIFF slices, TIFF)"
    assert join_channels(three[::-1]).identity() != identity
    (three[0] / "s3.tif").touch()
    assert join_channels(three).identity() != identity


def test_what_fails_names_the_file_of_its_own_source(three: list[Path]) -> None:
    source = join_channels(three)
    (three[0] / "s6.tif").unlink()
    with pytest.raises(Failure, match=r"ch0/s6\.tif: plane z = 6 could not be read"):
        source.read(WHOLE, (3, 0))
    np.testing.assert_array_equal(source.read(WHOLE, (3, 1)), STACKS[[3, 1]])


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        (STACKS[0, :6], r"ch0 has \(7, 13, 31\) voxels \(z, y, x\), \S+odd has \(6, 13, 31\).*export them alike"),
        (STACKS[0, :, :, 1:], r"ch0 has \(7, 13, 31\) voxels \(z, y, x\), \S+odd has \(7, 13, 30\).*one shape"),
        ((STACKS[0] >> 8).astype(np.uint8), r"ch0 has voxels of uint16, \S+odd of uint8.*export them alike"),
    ],
)
def test_sources_that_differ_are_named_with_both_values(tmp_path: Path, odd: np.ndarray, said: str) -> None:
    paths = [_slices(tmp_path / "ch0", STACKS[0]), _slices(tmp_path / "ch1", STACKS[1]), _slices(tmp_path / "odd", odd)]
    with pytest.raises(UserError, match=said):
        join_channels(paths)


def test_voxel_sizes_that_differ_by_more_than_1_percent_are_refused(tmp_path: Path) -> None:
    silent = _slices(tmp_path / "silent", STACKS[0])
    one, near = _imagej(tmp_path / "one.tif", STACKS[1]), _imagej(tmp_path / "near.tif", STACKS[2], 2.015)
    assert join_channels([silent, one, near]).voxel_size_um == pytest.approx((2, 1, 1))
    far = _imagej(tmp_path / "far.tif", STACKS[3], 2.03)
    said = r"one\.tif tells voxels of \[2.0, 1.0, 1.0\] µm .*far\.tif of \[2.03, 1.0, 1.0\].* 1 %.*two samples"
    with pytest.raises(UserError, match=said):
        join_channels([silent, one, near, far])


def test_many_single_planes_are_taken_for_slices_not_for_channels(tmp_path: Path) -> None:
    folder = _slices(tmp_path / "slab", np.zeros((9, 5, 7), np.uint16))
    paths = [folder / f"s{z}.tif" for z in range(9)]
    with pytest.raises(UserError, match=r"s0\.tif, \S+s1\.tif, …: 9 sources of one plane each.*give the folder"):
        join_channels(paths)
    assert join_channels(paths[:8]).shape == (8, 1, 5, 7)


def test_a_sample_of_several_sources_has_all_their_channels_unless_told(three: list[Path]) -> None:
    given = {"name": "s", "source": [path.name for path in three]}
    source = open_source(Sample(**given), three[0].parent)
    assert Sample(**given).channels_of(source.shape[0]) == (0, 1, 2, 3)
    assert Sample(**given, channels=[3, 1]).channels_of(source.shape[0]) == (3, 1)
    assert voxel_size_of(Sample(**given), source) == pytest.approx((2, 1, 1))
    with pytest.raises(UserError, match=r"\(0, 4\) are asked .*ch0 with .*ch3\.tif has 4 channel.* the last is 3"):
        open_source(Sample(**given, channels=[0, 4]), three[0].parent)
