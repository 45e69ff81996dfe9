import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neurovol.geometry import Box
from neurovol.training import samples
from neurovol.training.samples import BACKGROUND, NEURON, annotation_index, covered, read_continued

SHAPE = (7, 31, 29)


def random_annotation(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).choice([0, 1, 2, 3], SHAPE, p=[0.9, 0.06, 0.02, 0.02]).astype(np.uint8)


def boxes() -> st.SearchStrategy[Box]:
    axis = [st.tuples(st.integers(-3, n), st.integers(0, n + 3)).map(sorted) for n in SHAPE]
    return st.tuples(*axis).map(Box.from_pairs)


@settings(max_examples=40, deadline=None)
@given(boxes(), st.lists(boxes(), max_size=3))
def test_a_voxel_is_covered_if_any_box_holds_it(box, others):
    mask = covered(box, others)
    for place in np.ndindex(mask.shape):
        start = tuple(a + p for a, p in zip(box.start, place, strict=True))
        voxel = Box(start, tuple(a + 1 for a in start))
        assert mask[place] == any(other.contains(voxel) for other in others)


@settings(max_examples=30, deadline=None)
@given(st.tuples(*[st.integers(-9, 40)] * 3), st.tuples(*[st.integers(1, 12)] * 3))
def test_a_sample_is_continued_by_reflection(start, shape):
    volume = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    box = Box(start, tuple(a + n for a, n in zip(start, shape, strict=True)))
    padded = np.pad(volume, 60, mode="reflect")
    np.testing.assert_array_equal(
        read_continued(lambda b: volume[b.slices], box, SHAPE), padded[box.shifted((60, 60, 60)).slices]
    )


@pytest.mark.parametrize("cell", [(1, 8, 8), (4, 4, 5), (32, 64, 64)])
@pytest.mark.parametrize("piece", [(4, 16, 16), (32, 512, 512)])
def test_every_learnable_annotated_voxel_is_counted_once(make_sample, monkeypatch, cell, piece):
    monkeypatch.setattr(samples, "PIECE", piece)
    annotation = random_annotation()
    training = (Box((0, 2, 3), (5, 20, 25)), Box((3, 10, 3), (7, 31, 29)))  # overlapping
    excluded = (Box((2, 12, 0), (4, 18, 29)),)
    sample = make_sample(annotation, boxes=training, excluded=excluded)
    index = annotation_index([sample], cell)
    allowed = annotation[sample.learnable(sample.whole)]
    assert index.background == np.count_nonzero(allowed == 1)
    assert index.neuron == np.count_nonzero(allowed == 2)
    for row, counts in zip(index.cell, index.counts, strict=True):
        labels = sample.labels(index.grids[0][int(row)].write)
        assert counts.tolist() == [np.count_nonzero(labels == 1), np.count_nonzero(labels == 2)]


def test_only_declared_places_are_searched(make_sample):
    sample = make_sample(random_annotation(), annotated=())
    assert len(annotation_index([sample], (1, 8, 8)).cell) == 0


def test_a_drawn_cell_holds_the_label_and_likelier_the_more_of_it(make_sample):
    few, many = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    few[0, 0, :3] = NEURON
    few[0, 20] = BACKGROUND
    many[2, 5, :9] = NEURON
    both = [make_sample(few), make_sample(many)]
    index = annotation_index(both, (1, 8, 8))
    rng = np.random.default_rng(0)
    drawn = [index.draw(NEURON, rng) for _ in range(400)]
    assert all((both[number].labels(cell) == NEURON).any() for number, cell in drawn)
    assert 0.65 < sum(number for number, _ in drawn) / 400 < 0.85
    assert {number for number, _ in (index.draw(BACKGROUND, rng) for _ in range(9))} == {0}


def test_labels_outside_training_boxes_and_inside_test_boxes_are_hidden(make_sample):
    annotation = np.full(SHAPE, NEURON, np.uint8)
    sample = make_sample(annotation, boxes=(Box((0, 0, 0), (4, 31, 29)),), excluded=(Box((0, 0, 0), (2, 31, 29)),))
    assert [set(plane.ravel().tolist()) for plane in sample.labels(sample.whole)] == [{0}, {0}, {2}, {2}, {0}, {0}, {0}]
