"""From what experts drew to the store's annotation image."""

import json
import pickle

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neurovol.errors import UserError
from neurovol.geometry import Box
from neurovol.settings import Annotation, Phantom, Sample
from neurovol.volume.annotation import annotation_reader
from neurovol.volume.source import open_source

SAMPLE = (9, 13, 17)
BOX = Box((2, 3, 4), (8, 12, 15))
DRAWN = np.random.default_rng(0).integers(0, 5, BOX.shape).astype(np.uint8)
EXPECTED = np.array([1, 2, 0, 3, 0], np.uint8)  # of drawn values 0 background, 1 neuron, 3 ignore
VALUES = {"ignore": 3}


def _annotation(**given):
    return Annotation(**({"sample": "brain", "source": "a.tif", "box": BOX.pairs, "values": VALUES} | given))


def _reader(root, *annotations):
    return annotation_reader(annotations, SAMPLE, None, root)


@pytest.fixture
def root(tmp_path):
    """A folder with an annotation of BOX, and one of the whole sample that calls all of it neuron."""
    tifffile.imwrite(tmp_path / "a.tif", DRAWN, photometric="minisblack")
    tifffile.imwrite(tmp_path / "neuron.tif", np.ones(SAMPLE, bool))
    return tmp_path


def _whole(labels: np.ndarray) -> np.ndarray:
    whole = np.zeros(SAMPLE, np.uint8)
    whole[BOX.slices] = labels
    return whole


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.builds(
        lambda *pairs: Box.from_pairs(sorted(p) for p in pairs),
        *(st.tuples(st.integers(0, n), st.integers(0, n)) for n in SAMPLE),
    ),
    st.sampled_from([{}, {"every": 2}, {"slices": (5, 0)}]),
)
def test_any_box_is_the_same_crop_of_the_whole(root, box, planes):
    drawn = {"every": [0, 2, 4], "slices": [0, 5]}.get(next(iter(planes), ""), list(range(6)))
    labels = np.zeros_like(DRAWN)
    labels[drawn] = EXPECTED[DRAWN[drawn]]
    read = _reader(root, _annotation(**planes)).read(box)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, _whole(labels)[box.slices])


def test_without_a_box_it_covers_the_whole_sample(root):
    everything = Annotation(sample="brain", source="neuron.tif")
    assert (_reader(root, everything).read(Box.of_shape(SAMPLE)) == 2).all()


def test_a_file_of_the_whole_sample_is_cut_to_its_box(root):
    whole = np.zeros(SAMPLE, np.uint8)
    whole[BOX.slices] = DRAWN
    tifffile.imwrite(root / "whole.tif", whole, photometric="minisblack")
    cut, own = _reader(root, _annotation(source="whole.tif")), _reader(root, _annotation())
    np.testing.assert_array_equal(cut.read(Box.of_shape(SAMPLE)), own.read(Box.of_shape(SAMPLE)))


def test_values_mean_what_the_settings_say(root):
    swapped = _annotation(values={"background": 4, "neuron": 0})
    labels = np.array([2, 0, 0, 0, 1], np.uint8)[DRAWN]
    np.testing.assert_array_equal(_reader(root, swapped).read(BOX), labels)


def test_the_later_annotation_wins_only_where_it_labels(root):
    everything = Annotation(sample="brain", source="neuron.tif")
    labels = EXPECTED[DRAWN]
    read = _reader(root, everything, _annotation()).read(BOX)
    np.testing.assert_array_equal(read, np.where(labels == 0, 2, labels))
    assert (_reader(root, _annotation(), everything).read(BOX) == 2).all()


def test_a_folder_of_slices_can_be_an_annotation(root):
    (root / "slices").mkdir()
    for z, plane in enumerate(DRAWN):
        tifffile.imwrite(root / "slices" / f"z{z}.tif", plane.astype(np.uint16), compression="zlib")
    read = _reader(root, _annotation(source="slices")).read(BOX)
    np.testing.assert_array_equal(read, EXPECTED[DRAWN])


def test_the_truth_of_a_phantom_can_be_an_annotation(tmp_path):
    sample = Sample(name="made-up", phantom=Phantom(shape=(24, 64, 64), seed=1))
    source = open_source(sample, tmp_path)
    box = Box((3, 8, 0), (20, 60, 50))
    annotation = Annotation(sample="made-up", source="phantom", box=box.pairs, every=4)
    reader = annotation_reader([annotation], (24, 64, 64), source, tmp_path)
    read = pickle.loads(pickle.dumps(reader)).read(Box.of_shape((24, 64, 64)))
    wanted = np.zeros((24, 64, 64), np.uint8)
    wanted[3:20:4, 8:60, 0:50] = source.truth(box)[::4] + 1
    np.testing.assert_array_equal(read, wanted)
    assert json.loads(json.dumps(reader.identity()))["pieces"][0]["source"]["kind"] == "phantom's truth"


def test_the_identity_holds_all_that_determines_the_labels(root):
    def identity(**given):
        return json.dumps(_reader(root, _annotation(**given)).identity(), sort_keys=True)

    changes = [{}, {"every": 2}, {"slices": (1,)}, {"values": {"neuron": 2}}, {"box": BOX.shifted((1, 1, 1)).pairs}]
    assert len({identity(**given) for given in changes}) == len(changes)
    assert identity() == identity(role="test")
    before = identity()
    tifffile.imwrite(root / "a.tif", DRAWN[:, ::-1], photometric="minisblack")
    assert identity() != before


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"box": ((2, 10), (3, 12), (4, 15))},
            r"box \[\[2, 10\], .* leaves the sample, which has the shape \(9, 13, 17\)",
        ),
        ({"box": ((2, 9), (3, 12), (4, 15))}, r"file has the shape \(6, 9, 11\), but its box .* shape \(7, 9, 11\)"),
        ({"box": None}, r"file has the shape \(6, 9, 11\), but its box .* shape \(9, 13, 17\)"),
        ({"slices": (0, 6, 9)}, r"slices \[6, 9\] lie outside its box, which has 6 planes"),
        ({"source": "nothing.tif"}, r"nothing\.tif: there is no such file"),
    ],
)
def test_what_does_not_fit_is_refused(root, given, said):
    with pytest.raises(UserError, match=said):
        _reader(root, _annotation(**given))


def test_an_annotation_has_one_channel(root):
    two = np.zeros((6, 2, 9, 11), np.uint8)
    tifffile.imwrite(root / "two.tif", two, imagej=True, metadata={"axes": "ZCYX"})
    with pytest.raises(UserError, match="it has 2 channels; an annotation is one image"):
        _reader(root, _annotation(source="two.tif"))


def test_an_annotation_of_floating_point_is_refused(root):
    tifffile.imwrite(root / "f.tif", DRAWN.astype(np.float32))
    with pytest.raises(UserError, match="its voxels are float32"):
        _reader(root, _annotation(source="f.tif"))
