"""Which source a sample's settings open, and what its voxels measure."""

import pickle

import numpy as np
import pytest
import tifffile
import yaml
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from neurovol.errors import UserError
from neurovol.geometry import Box
from neurovol.samplesettings import Phantom, Sample
from neurovol.volume.source import open_source, read_reflected, voxel_size_of

STACK = np.random.default_rng(0).integers(0, 60000, (5, 7, 11)).astype(np.uint16)


class _Array:
    """A reader of an array in memory."""

    def __init__(self, array):
        self.array = array

    def read(self, box, channels=None):
        whole = self.array[(..., *box.slices)]
        return whole if channels is None else whole[list(channels)]


def _sample(**given):
    return Sample(**({"name": "brain", "source": "s.tif"} | given))


@pytest.fixture
def root(tmp_path):
    """A folder with a stack that tells its voxel size, and one that does not."""
    metadata = {"axes": "ZYX", "spacing": 5.0, "unit": "um"}
    tifffile.imwrite(tmp_path / "s.tif", STACK, imagej=True, resolution=(0.5, 0.5), metadata=metadata)
    tifffile.imwrite(tmp_path / "plain.tif", STACK)
    return tmp_path


def test_paths_are_relative_to_the_project(root):
    source = open_source(_sample(), root)
    np.testing.assert_array_equal(source.read(Box.of_shape(STACK.shape), (0,))[0], STACK)


def test_a_phantom_is_a_source_like_any_other(tmp_path):
    sample = Sample(name="made-up", phantom=Phantom(shape=(9, 33, 37), seed=3), voxel_size_um=(2, 2, 2))
    source = open_source(sample, tmp_path)
    assert source.shape[1:] == (9, 33, 37)
    box = Box((2, 3, 4), (7, 20, 30))
    part = pickle.loads(pickle.dumps(source)).read(box, (0,))
    assert part.shape == (1, *box.shape)
    assert part.dtype == source.dtype
    assert source.identity()["kind"]


def test_channels_that_are_not_there_are_refused(root):
    with pytest.raises(UserError, match=r"channels \(0, 2\) are asked for, but .*s\.tif has 1 channel"):
        open_source(_sample(channels=(0, 2)), root)


def test_the_source_tells_the_voxel_size_unless_it_is_set(root):
    source = open_source(_sample(), root)
    assert voxel_size_of(_sample(), source) == pytest.approx((5, 2, 2))
    assert voxel_size_of(_sample(voxel_size_um=(5, 2.015, 2)), source) == (5, 2.015, 2)


def test_a_voxel_size_that_differs_by_more_than_1_percent_is_refused(root):
    source = open_source(_sample(), root)
    with pytest.raises(UserError, match=r"set to \[5.0, 2.03, 2.0\], but its source tells \[5.0, 2.0, 2.0\].* 1 %"):
        voxel_size_of(_sample(voxel_size_um=(5, 2.03, 2)), source)


def test_a_voxel_size_that_nobody_tells_is_asked_for(root):
    sample = _sample(source="plain.tif")
    with pytest.raises(UserError, match=r"--voxel-size Z Y X, or in a project file as voxel_size_um = \[z, y, x\]"):
        voxel_size_of(sample, open_source(sample, root))
    told = _sample(source="plain.tif", voxel_size_um=(1, 2, 3))
    assert voxel_size_of(told, open_source(told, root)) == (1, 2, 3)


starts = st.tuples(*(st.integers(-9, n + 4) for n in STACK.shape))
lengths = st.tuples(*(st.integers(1, 15),) * 3)


@settings(max_examples=60, deadline=None)
@given(starts, lengths)
def test_outside_the_volume_it_is_reflected(start, length):
    box = Box(start, tuple(a + n for a, n in zip(start, length, strict=True)))
    padded = np.pad(STACK, 30, mode="reflect")
    wanted = padded[box.shifted((30, 30, 30)).slices]
    np.testing.assert_array_equal(read_reflected(_Array(STACK), box, STACK.shape), wanted)
    both = np.stack([STACK, STACK + 1])
    read = read_reflected(_Array(both), box, STACK.shape, (1, 0))
    np.testing.assert_array_equal(read, np.stack([wanted + 1, wanted]))


def _zarr(folder):
    zarr.create_array(str(folder / "v.zarr"), shape=STACK.shape, chunks=(2, 3, 4), dtype="uint16")[...] = STACK
    return "v.zarr"


def _hdf5(folder):
    with pytest.importorskip("h5py").File(folder / "v.h5", "w") as file:
        file["data/raw"] = STACK
    return "v.h5:/data/raw"


def _mosaic(folder):
    (folder / "p").mkdir()
    tifffile.imwrite(folder / "p/0_0.tif", STACK)
    z, y, x = STACK.shape
    tile = {
        "X": 0,
        "Y": 0,
        "Z": 0,
        "Xs": 0,
        "Ys": 0,
        "Zs": 0,
        "nfrms": z,
        "xsize": x,
        "ysize": y,
        "filename": "0_0.tif",
    }
    (folder / "p/stitch.yml").write_text(yaml.safe_dump({"filematrix": [tile]}))
    return "p"


@pytest.mark.parametrize("kind", [_zarr, _hdf5, _mosaic])
def test_the_kind_of_source_is_told_by_looking_at_it(tmp_path, kind):
    source = open_source(_sample(source=kind(tmp_path)), tmp_path)
    assert source.shape == (1, *STACK.shape)
    box = Box((1, 2, 3), (4, 6, 9))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(source)).read(box, (0,))[0], STACK[box.slices])
    out = np.zeros((1, *box.shape), np.uint16)
    assert source.read(box, (0,), out) is out
    np.testing.assert_array_equal(out[0], STACK[box.slices])
