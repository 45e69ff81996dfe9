"""Coarser levels: exact means and maxima, the same block by block."""

from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neurovol.geometry import BlockGrid, Box, ceil_div, zyx
from neurovol.volume.compiled import library
from neurovol.volume.halving import halve
from neurovol.volume.pyramid import _halve_whole, _mean, downsample

shapes = st.tuples(*(st.integers(1, 13),) * 3)
factors_zyx = st.tuples(*(st.integers(1, 3),) * 3) | st.tuples(st.integers(1, 2), st.integers(1, 2), st.just(2))


def _volume(shape, dtype, seed=0):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, endpoint=True).astype(dtype)


@settings(max_examples=40, deadline=None)
@given(shapes, factors_zyx, st.sampled_from([np.uint8, np.uint16]))
def test_the_mean_is_exact_and_rounds_half_up(shape, factors, dtype):
    array = _volume(shape, dtype)
    coarse = downsample(array, factors, "mean")
    assert coarse.dtype == dtype
    assert coarse.shape == ceil_div(shape, factors)
    for place in np.ndindex(coarse.shape):
        window = array[Box(zyx(place), zyx(p + 1 for p in place)).upsampled(factors).slices]
        assert coarse[place] == floor(Fraction(int(window.sum(dtype=np.uint64)), window.size) + Fraction(1, 2))


@settings(max_examples=40, deadline=None)
@given(shapes, factors_zyx, st.tuples(*(st.integers(1, 5),) * 3), st.sampled_from(["mean", "max"]))
def test_blocks_never_show_in_a_level(shape, factors, block, how):
    array = _volume((2, *shape), np.uint16)
    whole = downsample(array, factors, how)
    volume = zyx(whole.shape[1:])
    for cell in BlockGrid(volume, block, block):
        finer = cell.write.upsampled(factors).intersect(Box.of_shape(shape))
        part = downsample(array[(..., *finer.slices)], factors, how)
        np.testing.assert_array_equal(part, whole[(..., *cell.write.slices)])


compiled = pytest.mark.skipif(library() is None, reason="neurovol was installed without a C compiler")
halvings = st.tuples(st.integers(1, 2), st.integers(1, 2), st.just(2))
wholes = st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 70))  # wider than a vector of any processor


@compiled
@settings(max_examples=200, deadline=None)
@given(wholes, halvings, st.sampled_from([np.uint8, np.uint16]), st.integers(1, 65535), st.integers(0, 2))
def test_compiled_means_are_those_of_numpy(coarse, factors, dtype, bright, margin):
    """Of dim and of bright voxels, and of parts of larger arrays."""
    nz, ny, nx = (n * f for n, f in zip(coarse, factors, strict=True))
    held = np.minimum(_volume((2, nz + margin, ny + margin, nx + margin), dtype), min(bright, np.iinfo(dtype).max))
    array = held[:, margin:, margin:, margin:]
    target = np.zeros((2, *(n + margin for n in coarse)), dtype)
    by_numpy = np.empty((2, *coarse), dtype)
    assert halve(array, factors, target)
    _halve_whole(array, factors, by_numpy)
    nz, ny, nx = coarse
    np.testing.assert_array_equal(target[:, :nz, :ny, :nx], by_numpy)
    np.testing.assert_array_equal(by_numpy, _mean(array, factors))
    target[:, :nz, :ny, :nx] = 0
    assert not target.any()  # nothing is written beyond


@compiled
def test_what_is_not_contiguous_along_x_is_left_to_numpy():
    array, out = _volume((2, 4, 16), np.uint16)[..., ::2], np.zeros((1, 2, 4), np.uint16)
    assert not halve(array, (2, 2, 2), out)
    assert not out.any()
    np.testing.assert_array_equal(downsample(array, (2, 2, 2), "mean"), _mean(array, (2, 2, 2)))


def test_the_far_end_averages_only_what_exists():
    assert downsample(np.array([[[10, 20, 7]]], np.uint8), (1, 1, 2), "mean").tolist() == [[[15, 7]]]


def test_the_brightest_values_do_not_overflow():
    array = np.full((16, 16, 16), 65535, np.uint16)
    assert (downsample(array, (16, 16, 16), "mean") == 65535).all()
    assert (downsample(array, (4, 4, 4), "mean") == 65535).all()


def test_labels_take_the_largest_value():
    labels = np.zeros((2, 2, 3), np.uint8)
    labels[1, 0, 1], labels[0, 1, 2] = 2, 1
    assert downsample(labels, (2, 2, 2), "max").tolist() == [[[2, 1]]]


def test_floating_point_is_refused():
    with pytest.raises(ValueError, match="float32"):
        downsample(np.zeros((2, 2, 2), np.float32), (2, 2, 2), "mean")
