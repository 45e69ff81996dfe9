"""The tissue mask: none of the tissue is lost, empty surroundings are left out, and no cut shows."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from neurovol.geometry import Box, windows
from neurovol.levels import coarsening, level_factors
from neurovol.volume.phantom import PhantomSource
from neurovol.volume.phantom_traits import Traits
from neurovol.volume.pyramid import downsample
from neurovol.volume.tissue import (
    MARGIN,
    noise_threshold,
    threshold_of,
    tissue_fraction,
    tissue_halo,
    tissue_level,
    tissue_mask,
)

SIZE = (8.0, 7.04, 7.04)
SHAPE = (64, 256, 320)
NO_SURROUNDINGS = Traits(surround_share=-1.0)


def coarse(phantom: PhantomSource) -> np.ndarray:
    """(z, y, x) of a phantom, halved to SIZE."""
    image = phantom.read(Box.of_shape(phantom.shape_zyx))[0]
    for factors in level_factors(phantom.shape_zyx, phantom.voxel_size_um)[:3]:
        image = downsample(image, factors, "mean")
    return image


@pytest.fixture(scope="module")
def sample() -> np.ndarray:
    """A phantom with surroundings of noise across its low y: the first rows have no tissue, the last all."""
    return coarse(PhantomSource((64, 420, 320), seed=3, traits=Traits(surround_share=0.25)))


@pytest.fixture(scope="module")
def all_tissue() -> np.ndarray:
    """A phantom that is tissue throughout, brighter at its surface than at depth."""
    return coarse(PhantomSource(SHAPE, seed=4, traits=NO_SURROUNDINGS))


def counts(image: np.ndarray) -> np.ndarray:
    return np.bincount(image.ravel(), minlength=2**16).astype(np.int64)


def masked(image: np.ndarray, thresholds=None, size=SIZE) -> np.ndarray:
    """The mask of a whole image (z, y, x) or (c, z, y, x), in one piece."""
    channels = image if image.ndim == 4 else image[None]
    halo = [(h, h) for h in tissue_halo(size)]
    wide = np.pad(channels, [(0, 0), *halo])
    thresholds = thresholds if thresholds is not None else [threshold_of(counts(c)) for c in channels]
    inner = tuple(slice(h, -h) for h, _ in halo)
    return tissue_mask(wide, thresholds, size)[inner]


def test_surroundings_of_noise_are_left_out_and_no_tissue_is_lost(sample):
    mask = masked(sample)
    assert 110 < threshold_of(counts(sample)) < 125  # the noise is 110 ± 1
    assert not mask[:, :7].any()
    assert mask[:, 20:].all()
    assert mask[sample > 125].all()


def test_a_sample_that_is_tissue_throughout_is_all_ones(all_tissue):
    assert threshold_of(counts(all_tissue)) == 0
    assert masked(all_tissue).all()


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("brightness", [0.7, 0.5, 0.3])
def test_dim_tissue_beside_bright_is_tissue(all_tissue, share, brightness):
    image = all_tissue.astype(float)
    image[..., : round(share * image.shape[2])] -= 110
    image[..., : round(share * image.shape[2])] *= brightness
    image[..., : round(share * image.shape[2])] += 110
    assert masked(image.round().astype(np.uint16)).all()


@pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
def test_surroundings_of_any_share_are_told_from_tissue(all_tissue, share):
    rng, image = np.random.default_rng(0), np.concatenate([all_tissue] * 4, axis=2)
    empty = round(share * image.shape[2])
    image[..., :empty] = rng.normal(110, 1.5, image[..., :empty].shape).round()
    mask = masked(image)
    assert not mask[..., : empty - MARGIN - 1].any()
    assert mask[..., empty:].all()


def test_surroundings_of_exact_zeros_are_left_out(all_tissue):
    image = all_tissue.copy()
    image[:, :15] = 0
    mask = masked(image)
    assert not mask[:, : 15 - MARGIN].any()
    assert mask[:, 15 - MARGIN :].all()


def test_a_volume_of_zeros_has_no_tissue_and_one_of_noise_alone_cannot_be_told_from_it():
    assert not masked(np.zeros((9, 11, 13), np.uint16)).any()
    noise = np.random.default_rng(0).normal(100, 3, (19, 31, 37)).round().astype(np.uint16)
    assert masked(noise).all()
    assert masked(np.full((3, 5, 7), 7, np.uint8)).all()


def test_any_channel_counts(all_tissue):
    empty = np.full_like(all_tissue, 110)
    left, right = all_tissue.copy(), all_tissue.copy()
    left[..., 15:], right[..., :25] = empty[..., 15:], empty[..., :25]
    mask = masked(np.stack([left, right]), [120, 120])
    assert mask[..., : 15 + MARGIN].all()
    assert mask[..., 25 - MARGIN :].all()


def test_noise_alone_stays_below_its_threshold_and_what_is_brighter_does_not():
    noise = np.random.default_rng(0).normal(100, 3, 10**5).round().astype(np.int64)
    assert noise.max() <= noise_threshold(np.bincount(noise)) < 120
    assert noise_threshold(np.bincount([0, 0, 0])) == 0


def test_vessels_are_closed_and_larger_holes_are_not():
    image = np.full((24, 60, 60), 300, np.uint16)
    z, y, x = np.ogrid[:24, :60, :60]
    image[np.hypot(y - 30, x - 12 + 0 * z) * 7.04 < 45] = 110  # a vessel through the sample, 90 µm wide
    assert masked(image, [120])[8:-8].all()
    image[np.hypot(y - 30, x - 38 + 0 * z) * 7.04 < 130] = 110
    mask = masked(image, [120])
    assert mask[:, 28:32, 10:14][8:-8].all()
    assert not mask[12, 30, 38]


IMAGES = hnp.arrays(np.uint16, (5, 17, 13), elements=st.sampled_from([0, 0, 0, 0, 0, 0, 0, 0, 0, 200]))


@dataclass
class Padded:
    """An image that is 0 beyond its ends."""

    image: np.ndarray

    def read(self, box: Box) -> np.ndarray:
        inside = box.intersect(Box.of_shape(self.image.shape))
        ends = zip(box.pairs, inside.pairs, strict=True)
        return np.pad(self.image[inside.slices], [(a - start, stop - b) for (start, stop), (a, b) in ends])


@settings(max_examples=40)
@given(IMAGES, st.tuples(*(st.integers(1, n) for n in (5, 17, 13))), st.sampled_from([SIZE, (40.0, 25.0, 30.0)]))
def test_windows_never_show(image, window, size):
    found = np.zeros(image.shape, bool)
    for part in windows(Box.of_shape(image.shape), window, tissue_halo(size), (1, 1, 1)):
        mask = tissue_mask(Padded(image).read(part.read)[None], [100], size)
        found[part.write.slices] = mask[part.write.within(part.read)]
    np.testing.assert_array_equal(found, masked(image, [100], size))


@given(IMAGES, st.integers(0, 300))
def test_no_voxel_above_the_threshold_is_lost_nor_its_neighbours(image, threshold):
    mask = masked(image, [threshold])
    for z, y, x in np.argwhere(image > threshold):
        assert mask[max(z - 2, 0) : z + 3, max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3].all()


def test_the_level_is_the_finest_of_about_8_um():
    cortex = level_factors((2000, 20000, 20000), (2.0, 0.88, 0.88))
    level = tissue_level((2000, 20000, 20000), (2.0, 0.88, 0.88), cortex)
    assert coarsening(cortex[:level]) == (8, 16, 16)
    assert tissue_level((40, 60, 60), (1.0, 1.0, 1.0), []) == 0
    assert tissue_level((500, 500, 500), (10.0, 10.0, 10.0), level_factors((500,) * 3, (10.0,) * 3)) == 0
    flat = level_factors((1, 4000, 4000), (2.0, 0.5, 0.5))
    assert coarsening(flat[: tissue_level((1, 4000, 4000), (2.0, 0.5, 0.5), flat)]) == (1, 16, 16)


@dataclass
class Kept:
    """A mask in memory."""

    mask: np.ndarray

    def read(self, box: Box) -> np.ndarray:
        return self.mask[box.slices]


@given(
    hnp.arrays(np.uint8, (3, 5, 4), elements=st.integers(0, 1)),
    st.tuples(*(st.tuples(st.integers(0, n), st.integers(1, n)) for n in (11, 19, 31))),
)
def test_the_fraction_of_a_box_is_that_of_its_voxels(mask, corners):
    coarser, volume = (4, 4, 8), (11, 19, 31)
    box = Box.from_pairs((min(a, b), min(a, b) + abs(a - b)) for a, b in corners)
    fine = mask.repeat(4, 0).repeat(4, 1).repeat(8, 2)[Box.of_shape(volume).slices]
    found = tissue_fraction(Kept(mask), mask.shape, coarser, box)
    assert found == pytest.approx(fine[box.slices].mean() if box.size else 0)
    assert (found > 0) == bool(fine[box.slices].any())


def test_a_phantom_without_surroundings_is_darkest_in_its_vessels():
    """The premise of the tests above: nothing of it is as dark as the noise of surroundings."""
    image = coarse(replace(PhantomSource(SHAPE, seed=4), traits=NO_SURROUNDINGS))
    assert image.min() > 125
