from math import log

import numpy as np
import pytest
import torch

from neurovol.errors import UserError
from neurovol.geometry import Box
from neurovol.training.pixels import PixelStream

SHAPE = (5, 53, 47)


def annotation() -> np.ndarray:
    labels = np.zeros(SHAPE, np.uint8)
    labels[[1, 3]] = 1
    labels[1, 20:27, 10:15] = 2
    labels[3, 0, 0] = 2
    labels[3, 40:, 40:] = 3
    return labels


def numbers(patches: torch.Tensor) -> np.ndarray:
    """Which voxel of the sample the classified pixel of each patch is: see make_sample."""
    return np.rint(patches[:, 0, 16, 16].double().numpy() * np.prod(SHAPE)).astype(int)


def test_half_of_the_pixels_are_neurons_and_all_are_annotated_so(make_sample):
    stream = PixelStream([make_sample(annotation())], batch=31, seed=0, augment=False)
    for step in range(6):
        patches, label = stream.batch(step)
        assert patches.shape == (31, 1, 32, 32)
        assert (patches.dtype, label.dtype) == (torch.float32, torch.int64)
        assert label.sum() == 15
        np.testing.assert_array_equal(annotation().ravel()[numbers(patches)], label.numpy() + 1)


def test_a_patch_is_the_surrounding_of_its_pixel_reflected_at_the_border(make_sample):
    sample = make_sample(annotation())
    stream = PixelStream([sample], batch=30, seed=1, augment=False)
    padded = np.pad(np.arange(np.prod(SHAPE)).reshape(SHAPE), ((0, 0), (16, 16), (16, 16)), mode="reflect")
    patches, _ = stream.batch(2)
    for patch, number in zip(patches.double().numpy(), numbers(patches), strict=True):
        z, y, x = np.unravel_index(number, SHAPE)
        expected = padded[z, y : y + 32, x : x + 32]
        np.testing.assert_array_equal(np.rint(patch[0] * np.prod(SHAPE)), expected)


def test_mirrored_patches_keep_their_middle(make_sample):
    labels = annotation()
    labels[1, 40, 40] = 2
    stream = PixelStream([make_sample(np.where(labels == 2, 2, np.uint8(1)))], batch=200, seed=0)
    patches, label = stream.batch(0)
    # brightness and gamma change values but not their order: the middle is still the median's neighbour
    for patch in patches[label == 1, 0].double():
        rows = patch[:, 16].diff().sign().unique()
        columns = patch[16, :].diff().sign().unique()
        assert len(patch) == 32
        assert len(rows) <= 3
        assert len(columns) <= 3


def test_a_batch_is_a_function_of_seed_and_step_alone(make_sample):
    sample = make_sample(annotation())
    first, second = (PixelStream([sample], 16, seed=3) for _ in range(2))
    expected = [first.batch(step) for step in range(40)]
    for step in (39, 0, 20):
        assert all(torch.equal(a, b) for a, b in zip(second.batch(step), expected[step], strict=True))
    assert not torch.equal(expected[0].patches, expected[1].patches)
    assert not torch.equal(PixelStream([sample], 16, seed=4).batch(0).patches, expected[0].patches)


def test_the_prior_is_the_annotated_share(make_sample):
    sample = make_sample(annotation(), excluded=(Box((3, 0, 0), (4, 53, 47)),))
    stream = PixelStream([sample], 16, seed=0)
    neurons, all_pixels = 7 * 5, 53 * 47
    assert stream.log_prior_odds == pytest.approx(log(neurons / (all_pixels - neurons)))


@pytest.mark.parametrize(("there", "missing"), [(1, "neuron"), (2, "background")])
def test_a_class_never_annotated_is_refused(make_sample, there, missing):
    sample = make_sample(np.where(annotation() > 0, there, 0).astype(np.uint8), name="tissue-7")
    with pytest.raises(UserError, match=f"no annotated {missing}.*tissue-7"):
        PixelStream([sample], 16, seed=0)


def test_pixels_of_all_samples_are_drawn(make_sample):
    samples = [make_sample(annotation(), name=name) for name in "ab"]
    stream = PixelStream(samples, 16, seed=0)
    assert {stream.index.draw(2, np.random.default_rng(i))[0] for i in range(20)} == {0, 1}
