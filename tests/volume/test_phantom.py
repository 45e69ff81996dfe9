"""The phantom: any box is the crop of a larger one, and what is in it is what the tissue is said to hold."""

from __future__ import annotations

import json
import pickle
import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from neurovol.errors import UserError
from neurovol.geometry import Box, zyx
from neurovol.volume.phantom import PhantomSource
from neurovol.volume.phantom_anatomy import glia, loose_grains, neurons
from neurovol.volume.phantom_drawing import Canvas, draw_grains
from neurovol.volume.phantom_optics import blur_kernels, tile_gain
from neurovol.volume.phantom_shapes import Region
from neurovol.volume.phantom_surface import Surface
from neurovol.volume.phantom_traits import Traits

SMALL = PhantomSource(shape_zyx=(31, 113, 131), seed=7)
WHOLE = Box.of_shape(SMALL.shape_zyx)


@pytest.fixture(scope="module")
def small() -> tuple[np.ndarray, np.ndarray]:
    return SMALL.read(WHOLE), SMALL.truth(WHOLE)


@pytest.fixture(scope="module")
def default() -> tuple[np.ndarray, np.ndarray]:
    source = PhantomSource()
    box = Box.of_shape(source.shape_zyx)
    return source.read(box)[0], source.truth(box)


def boxes(shape: tuple[int, int, int]) -> st.SearchStrategy[Box]:
    sides = [st.tuples(st.integers(0, n - 1), st.integers(1, n)).map(lambda p: (p[0], p[0] + p[1])) for n in shape]
    return st.tuples(*sides).map(lambda pairs: Box.from_pairs(pairs).intersect(Box.of_shape(shape)))


@settings(max_examples=40, deadline=None)
@given(box=boxes(SMALL.shape_zyx))
@example(box=Box((0, 0, 0), (1, 1, 1)))
@example(box=Box((30, 112, 130), (31, 113, 131)))
@example(box=Box((13, 0, 0), (14, 113, 131)))
@example(box=Box((0, 57, 0), (31, 58, 131)))
@example(box=Box((0, 0, 64), (31, 113, 65)))
def test_any_box_is_the_crop_of_a_larger_one(small: tuple[np.ndarray, np.ndarray], box: Box) -> None:
    image, truth = small
    assert SMALL.read(box).tobytes() == image[:, *box.slices].tobytes()
    assert SMALL.truth(box).tobytes() == truth[box.slices].tobytes()


@settings(max_examples=8, deadline=None)
@given(inner=boxes((9, 40, 50)), corner=st.tuples(*[st.integers(0, n - 50) for n in (20_000, 50_000, 50_000)]))
def test_so_it_is_deep_in_a_sample_of_terabytes(inner: Box, corner: tuple[int, int, int]) -> None:
    source = PhantomSource(shape_zyx=(20_000, 50_000, 50_000), seed=3)
    outer = Box.of_shape((9, 40, 50)).shifted(zyx(corner))
    box = inner.shifted(zyx(corner))
    assert np.array_equal(source.read(box), source.read(outer)[:, *inner.slices])
    assert np.array_equal(source.truth(box), source.truth(outer)[inner.slices])


def test_a_box_deep_in_a_sample_of_terabytes_holds_tissue_and_needs_little_memory() -> None:
    source = PhantomSource(shape_zyx=(20_000, 50_000, 50_000))
    tracemalloc.start()
    image = source.read(Box((13_007, 31_013, 49_900), (13_039, 31_141, 50_000)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert image.mean() > 150
    assert peak < 200e6


def test_a_box_made_in_parts_shows_no_seams() -> None:
    source = PhantomSource(shape_zyx=(67, 300, 270), seed=2)
    whole = source.read(Box((60, 240, 0), (67, 300, 270)))
    across = Box((62, 250, 250), (66, 260, 262))
    assert np.array_equal(source.read(across)[0], whole[0, 2:6, 10:20, 250:262])
    high = source.read(Box((0, 250, 250), (67, 260, 262)))
    assert np.array_equal(source.read(across)[0], high[0, 62:66])


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 7, 300), (3, 31, 1)])
def test_a_sample_may_be_smaller_than_a_cell(shape: tuple[int, int, int]) -> None:
    source = PhantomSource(shape_zyx=shape)
    box = Box.of_shape(shape)
    assert source.read(box).shape == source.shape == (1, *shape)
    assert source.truth(box).shape == shape


def test_seeds_differ_and_repeat(small: tuple[np.ndarray, np.ndarray]) -> None:
    box = Box((3, 30, 30), (8, 61, 61))
    other = PhantomSource(shape_zyx=SMALL.shape_zyx, seed=8)
    assert (other.read(box) != SMALL.read(box)).mean() > 0.9
    assert np.array_equal(SMALL.read(box), small[0][:, *box.slices])


def test_noise_at_neighbouring_voxels_is_unrelated(small: tuple[np.ndarray, np.ndarray]) -> None:
    flat = small[0][0, :, :3].astype(float)  # above the surface: read noise only
    assert 8 < flat.std() < 16
    for axis in range(3):
        a, b = np.delete(flat, 0, axis), np.delete(flat, -1, axis)
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.05


def test_one_voxel_in_forty_or_so_lies_in_a_soma(default: tuple[np.ndarray, np.ndarray]) -> None:
    truth = default[1]
    assert truth.dtype == np.uint8
    assert set(np.unique(truth)) == {0, 1}
    assert 0.012 < truth.mean() < 0.045


def test_somata_are_brighter_than_tissue_but_not_all(default: tuple[np.ndarray, np.ndarray]) -> None:
    image, truth = default
    inside, outside = image[truth > 0], image[truth == 0]
    assert inside.mean() > 1.4 * outside.mean()
    assert np.percentile(inside, 10) < np.percentile(outside, 90)


def test_contrast_brightens_neurons_only() -> None:
    box = Box((0, 40, 40), (24, 140, 140))
    plain, strong = (PhantomSource(contrast=c) for c in (1.0, 2.0))
    truth = plain.truth(box) > 0
    assert np.array_equal(strong.truth(box) > 0, truth)
    a, b = plain.read(box)[0].astype(float), strong.read(box)[0].astype(float)
    assert b[truth].mean() > 1.2 * a[truth].mean()
    assert abs(np.median(b[~truth]) / np.median(a[~truth]) - 1) < 0.05


def test_the_surround_is_empty(default: tuple[np.ndarray, np.ndarray]) -> None:
    image, truth = default
    dark = image[:, :5]
    assert abs(dark.mean() - Traits().offset_counts) < 2
    assert dark.max() < 200
    assert not truth[:, :10].any()
    assert image[0, 60:].mean() > 2 * dark.mean()


@pytest.mark.parametrize("extent", [225.0, 44_000.0])
def test_the_surface_is_the_same_at_points_as_in_boxes(extent: float) -> None:
    surface = Surface(1, extent, (2.0, 0.88, 0.88), Traits())
    box = Box((1009, 3, 2003), (1040, 5, 2103))
    centres = np.stack(np.meshgrid(*[np.arange(a, b) + 0.5 for a, b in box.pairs], indexing="ij"), -1).reshape(-1, 3)
    at = surface.depth_at(centres * surface.voxel_size_um)
    assert np.allclose(at, surface.depth(box).ravel(), atol=0.01)


def test_grains_are_bright_and_not_truth(default: tuple[np.ndarray, np.ndarray]) -> None:
    source = PhantomSource()
    box = Box.of_shape(source.shape_zyx)
    canvas = Canvas(box, source.voxel_size_um)
    grains = np.zeros(box.shape, np.float32)
    draw_grains(canvas, grains, loose_grains(0, source._region(box), source.traits))
    image, truth = default
    at = grains > 6
    assert at.sum() > 100
    assert truth[at].mean() < 0.1
    assert np.median(image[at]) > 1.3 * np.median(image[truth > 0])


def region(side_um: float) -> Region:
    surface = Surface(0, 20_000.0, (2.0, 0.88, 0.88), Traits())
    return Region((1e4, 1e4, 1e4), (1e4 + side_um, 1e4 + side_um, 1e4 + side_um), surface)


def test_neurons_are_as_dense_as_in_human_cortex() -> None:
    bodies = neurons(0, region(400), Traits(), 1.0).bodies
    inside = ((bodies.centre > 1e4) & (bodies.centre < 1e4 + 400)).all(axis=1)
    assert 0.9 < inside.sum() / 0.4**3 / Traits().neurons_per_mm3 < 1.1
    widths = 2 * bodies.half_width
    assert widths.min() > 7
    assert 2 * bodies.half_length.max() < 26


def test_neurons_touch_but_do_not_share_a_place() -> None:
    bodies = neurons(1, region(300), Traits(), 1.0).bodies
    apart = np.sqrt(((bodies.centre[:, None] - bodies.centre[None]) ** 2).sum(-1))
    sizes = bodies.half_width[:, None] + bodies.half_width[None]
    np.fill_diagonal(apart, np.inf)
    assert (apart / sizes).min() >= 0.88
    assert ((apart / sizes).min(axis=1) < 1.2).sum() > 5


def test_glia_are_smaller_than_neurons() -> None:
    cells = glia(0, region(200), Traits())
    assert len(cells.centre) > 2
    assert cells.half_length.max() < 5


def test_tiles_step_at_their_borders() -> None:
    gain = tile_gain(Box((0, 0, 0), (1, 1200, 1200)), 0, 0, Traits())
    step = np.abs(np.diff(gain, axis=0)).max(axis=1)
    assert (step > 0.02).sum() == 3
    assert np.diff(np.flatnonzero(step > 0.02)).tolist() == [400, 400]


def test_brightness_falls_with_depth_and_returns_with_the_next_slab() -> None:
    source = PhantomSource(shape_zyx=(420, 300, 300))
    means = [source.read(Box((z, 100, 100), (z + 1, 200, 200))).mean() for z in (2, 195, 202)]
    assert means[1] < 0.75 * means[0]
    assert means[2] > 1.3 * means[1]


def test_blur_keeps_light_and_is_worse_along_z() -> None:
    traits, size = Traits(), (1.0, 1.0, 1.0)
    z, y, x = blur_kernels(traits, size)
    assert all(abs(k[0] + 2 * sum(k[1:]) - 1) < 1e-12 for k in (z, y, x))
    assert len(z) >= 2 * len(y) == 2 * len(x)


def test_it_survives_pickling_and_its_identity_is_json() -> None:
    assert pickle.loads(pickle.dumps(SMALL)) == SMALL
    identity = json.loads(json.dumps(SMALL.identity()))
    assert isinstance(identity["version"], int)
    assert identity["seed"] == 7
    assert identity["traits"]["tile_px"] == 400


def test_it_has_one_channel_only() -> None:
    with pytest.raises(UserError, match=r"channels \(0, 1\).*one channel, 0"):
        SMALL.read(WHOLE, (0, 1))


def test_a_box_outside_the_sample_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(31, 113, 131\)"):
        SMALL.truth(Box((0, 0, 0), (32, 1, 1)))
