import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neurovol.training import augment
from neurovol.training.augment import mirrored, varied, with_gamma


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([(3, 5, 5), (3, 4, 7)]))
def test_image_target_and_weight_are_mirrored_alike(seed, shape):
    target = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    image, same, twice = mirrored((target[None], target, target * 2), np.random.default_rng(seed))
    np.testing.assert_array_equal(image[0], same)
    np.testing.assert_array_equal(twice, same * 2)
    assert same.shape == shape
    assert sorted(same.ravel()) == sorted(target.ravel())


@pytest.mark.parametrize(("shape", "orientations"), [((2, 3, 3), 16), ((2, 3, 4), 8)])
def test_all_orientations_occur_and_no_slice_is_taken_apart(shape, orientations):
    array = np.arange(np.prod(shape)).reshape(shape)
    rng = np.random.default_rng(0)
    results = [mirrored((array,), rng)[0] for _ in range(400)]
    assert len({r.tobytes() for r in results}) == orientations
    assert all(
        {frozenset(s.ravel().tolist()) for s in r} == {frozenset(s.ravel().tolist()) for s in array} for r in results
    )


def test_the_same_generator_gives_the_same_variant():
    image = np.random.default_rng(0).random((2, 4, 9, 9), np.float32)
    for seed in range(20):
        first, second = (varied(image, np.random.default_rng(seed)) for _ in range(2))
        np.testing.assert_array_equal(first, second)


def test_variants_stay_close_and_leave_the_original_alone(monkeypatch):
    monkeypatch.setattr(augment, "SHARE", 1.0)
    image = np.full((1, 5, 9, 9), 0.5, np.float32)
    rng = np.random.default_rng(0)
    for _ in range(20):
        result = varied(image, rng)
        assert (result.shape, result.dtype) == (image.shape, np.float32)
        # brightness and gamma: 0.45 ** 1.1 to 0.55 ** 0.9, and noise
        assert 0.4 < result.min() <= result.max() < 0.6
    assert (image == 0.5).all()


def test_channels_are_not_blurred_into_each_other(monkeypatch):
    monkeypatch.setattr(augment, "SHARE", 1.0)
    monkeypatch.setattr(augment, "NOISE_VARIANCE", 0.0)
    image = np.zeros((2, 5, 9, 9), np.float32)
    image[0, 2, 4, 4] = 1
    result = varied(image, np.random.default_rng(0))
    assert 0 < result[0].max() < 1
    assert not result[1].any()


def test_gamma_keeps_the_sign():
    result = with_gamma(np.array([-0.25, 0.0, 0.25], np.float32), np.float32(0.5))
    np.testing.assert_allclose(result, [-0.5, 0, 0.5])
