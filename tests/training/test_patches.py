import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neurovol.errors import UserError
from neurovol.geometry import Box
from neurovol.settings import TrainSettings
from neurovol.training.patches import PatchStream

SHAPE = (13, 31, 37)
SETTINGS = TrainSettings(patch=(8, 16, 16), batch=4, augment=False, alpha=0.3)


def slices_annotated(*planes: int) -> np.ndarray:
    """Annotated planes, with a neuron in each."""
    annotation = np.zeros(SHAPE, np.uint8)
    annotation[list(planes)] = 1
    annotation[list(planes), 10:14, 20:25] = 2
    return annotation


def pseudo_labels() -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, SHAPE).astype(np.uint8)


def numbers(image: np.ndarray) -> np.ndarray:
    """Which voxel of the sample each voxel of a patch is: see make_sample."""
    return np.rint(image * np.prod(SHAPE)).astype(int)


def test_weights_are_1_on_annotated_alpha_on_pseudo_labelled_and_0_elsewhere(make_sample):
    annotation, pseudo = slices_annotated(3), pseudo_labels()
    annotation[3, 0] = 3
    sample = make_sample(
        annotation,
        pseudo,
        boxes=(Box((0, 0, 0), (8, 31, 37)),),
        inferred=(Box((0, 0, 0), (13, 31, 30)),),
        excluded=(Box((2, 20, 0), (6, 31, 37)),),
    )
    target, weight = PatchStream([sample], SETTINGS).target(sample, sample.whole)
    expected = np.zeros(SHAPE, np.float32)
    expected[:8, :, :30] = 0.3
    expected[3] = 1
    expected[3, 0] = 0  # ignore
    expected[2:6, 20:] = 0  # a test box
    np.testing.assert_array_equal(weight, expected)
    on_pseudo = weight == np.float32(0.3)
    np.testing.assert_array_equal(target[on_pseudo], (pseudo >= 128)[on_pseudo])
    np.testing.assert_array_equal(target[weight == 1], (annotation == 2)[weight == 1])


def test_soft_pseudo_labels_are_probabilities(make_sample):
    pseudo = pseudo_labels()
    sample = make_sample(slices_annotated(3), pseudo)
    stream = PatchStream([sample], SETTINGS.model_copy(update={"pseudo_labels": "soft"}))
    target, weight = stream.target(sample, sample.whole)
    np.testing.assert_allclose(target[weight < 1], pseudo[weight < 1] / 255, rtol=1e-6)


def test_the_baseline_learns_from_annotated_voxels_only(make_sample):
    stream = PatchStream([make_sample(slices_annotated(3), pseudo_labels())], SETTINGS, use_pseudo=False)
    for step in range(5):
        weight = stream.batch(step).weight
        assert set(weight.unique().tolist()) == {0, 1}
        assert (weight.sum(dim=(1, 2, 3)) > 0).all()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10**9), st.integers(0, 10**6))
def test_test_boxes_never_give_loss_and_targets_belong_to_their_voxels(make_sample, seed, step):
    annotation, pseudo = slices_annotated(3, 9), pseudo_labels()
    excluded = np.zeros(SHAPE, bool)
    excluded[7:, 5:20] = True
    sample = make_sample(annotation, pseudo, excluded=(Box((7, 5, 0), (13, 20, 37)),))
    batch = PatchStream([sample], SETTINGS.model_copy(update={"seed": seed})).batch(step)
    for image, target, weight in zip(*(t.numpy() for t in batch), strict=True):
        voxel = numbers(image[0]).ravel()
        assert not weight.ravel()[excluded.ravel()[voxel]].any()
        truth = np.where(annotation == 0, pseudo >= 128, annotation == 2).ravel()[voxel]
        np.testing.assert_array_equal(target.ravel()[weight.ravel() > 0], truth[weight.ravel() > 0])


def test_a_batch_is_a_function_of_seed_and_step_alone(make_sample):
    sample = make_sample(slices_annotated(3), pseudo_labels())
    augmented = SETTINGS.model_copy(update={"augment": True})
    first, second = PatchStream([sample], augmented), PatchStream([sample], augmented)
    expected = [first.batch(step) for step in range(4)]
    for step in (3, 1, 2, 0):
        assert all(torch.equal(a, b) for a, b in zip(second.batch(step), expected[step], strict=True))
    other = PatchStream([sample], augmented.model_copy(update={"seed": 1}))
    assert not torch.equal(other.batch(0).image, expected[0].image)
    assert not torch.equal(expected[0].image, expected[1].image)


def test_shapes_and_types(make_sample):
    batch = PatchStream([make_sample(slices_annotated(3), pseudo_labels())], TrainSettings(batch=3)).batch(0)
    assert batch.image.shape == (3, 1, 32, 64, 64)
    assert batch.target.shape == batch.weight.shape == (3, 32, 64, 64)
    assert {t.dtype for t in batch} == {torch.float32}


def test_where_the_sample_is_thinner_than_the_patch_it_is_reflected_without_weight(make_sample):
    sample = make_sample(slices_annotated(*range(13)))
    stream = PatchStream([sample], SETTINGS.model_copy(update={"patch": (16, 16, 16)}))
    mirrored_planes = [*range(12, 0, -1), *range(13), *range(11, 0, -1)]  # plane 0 stands at 12
    places = set()
    for image, weight in zip(*stream.batch(0)[::2], strict=True):
        planes = (numbers(image[0, :, 0, 0].numpy()) // (31 * 37)).tolist()
        places |= {first for first in range(20) if mirrored_planes[first : first + 16] == planes}
        first = next(p for p in range(20) if mirrored_planes[p : p + 16] == planes)
        assert [bool(w.any()) for w in weight] == [12 <= first + i < 25 for i in range(16)]
    assert len(places) > 1, "all patches lie alike, so that the network can count planes from their border"


def test_the_set_share_of_patches_lies_around_annotated_voxels(make_sample):
    sample = make_sample(slices_annotated(0), pseudo_labels())
    for share in (0.0, 0.25, 0.75, 1.0):
        stream = PatchStream([sample], SETTINGS.model_copy(update={"annotated_share": share}))
        weights = torch.cat([stream.batch(step).weight for step in range(20)])
        with_annotation = (weights == 1).flatten(1).any(1).float().mean().item()
        # one plane of 13 is annotated: a patch anywhere, moved into the sample, holds it in 5 of 13 cases
        assert with_annotation == pytest.approx(share + (1 - share) * 5 / 13, abs=0.15)


def test_a_patch_around_an_annotated_voxel_holds_one_and_stays_in_its_training_box(make_sample):
    annotation = np.zeros(SHAPE, np.uint8)
    annotation[6, 30, 36] = 2
    box = Box((4, 11, 17), (13, 31, 37))
    stream = PatchStream([make_sample(annotation, boxes=(box,))], SETTINGS)
    for step in range(10):
        batch = stream.batch(step)
        assert (batch.weight.sum(dim=(1, 2, 3)) == 1).all()
        for image in batch.image.numpy():
            voxel = np.unravel_index(numbers(image[0]), SHAPE)
            assert all(v.min() >= a and v.max() < b for v, (a, b) in zip(voxel, box.pairs, strict=True))


def test_neurons_are_sought_every_other_time_however_few(make_sample):
    annotation = slices_annotated(3)
    annotation[annotation == 2] = 1
    annotation[12, 0, 0] = 2
    stream = PatchStream([make_sample(annotation)], SETTINGS)
    target = torch.cat([stream.batch(step).target for step in range(25)])
    assert 0.35 < target.flatten(1).any(1).float().mean().item() < 0.65


def test_samples_are_drawn_from_by_the_size_of_their_training_boxes(make_sample):
    small = make_sample(slices_annotated(3), np.zeros(SHAPE, np.uint8), inferred=(Box((0, 0, 0), (13, 31, 4)),))
    large = make_sample(slices_annotated(3), np.full(SHAPE, 255, np.uint8))
    stream = PatchStream([small, large], SETTINGS.model_copy(update={"annotated_share": 0.0}))
    rng = np.random.default_rng(0)
    drawn = [stream._inferred_box(rng)[0] is large for _ in range(400)]
    assert 0.85 < np.mean(drawn) < 0.95


def test_no_annotated_voxel_is_refused(make_sample):
    empty = make_sample(np.zeros(SHAPE, np.uint8), pseudo_labels(), name="tissue-7")
    with pytest.raises(UserError, match=r"no annotated voxel.*tissue-7"):
        PatchStream([empty], SETTINGS)
