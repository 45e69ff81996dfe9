"""From what experts drew to the store's annotation image."""

import json
import pickle

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from roifile import ROI_TYPE, ImagejRoi, roiwrite

from neurovol.errors import Failure, UserError
from neurovol.geometry import Box
from neurovol.samplesettings import Phantom, Sample
from neurovol.settings import Annotation
from neurovol.volume.annotation import annotation_reader, check_crops
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


def _square(z, left, top, name, kind=ROI_TYPE.POLYGON):
    """Three pixels wide and high, on plane z of its box."""
    roi = ImagejRoi.frompoints(np.add([[0, 0], [3, 0], [3, 3], [0, 3]], (left, top)), position=z, name=name)
    roi.roitype = kind
    return roi


@pytest.fixture
def rois(root):
    """An ROI set on BOX: two neurons on its plane 0, one on plane 4."""
    drawn = [_square(0, 1, 2, "a"), _square(0, 6, 5, "b"), _square(4, 3, 3, "c")]
    roiwrite(root / "rois.zip", drawn, name=["a", "b", "c"], mode="w")
    return root


def test_a_declared_slice_without_rois_is_background(rois):
    read = _reader(rois, _annotation(source="rois.zip", slices=(0, 2, 4), values={})).read(Box.of_shape(SAMPLE))
    wanted = np.zeros(SAMPLE, np.uint8)
    wanted[2:8:2, 3:12, 4:15] = 1
    wanted[2, 5:8, 5:8] = wanted[2, 8:11, 10:13] = wanted[6, 6:9, 7:10] = 2
    np.testing.assert_array_equal(read, wanted)


@pytest.mark.parametrize("values", [{}, {"neuron": 1}, {"neuron": "instances"}])
def test_rois_are_instances_however_they_are_declared(rois, values):
    reader = _reader(rois, _annotation(source="rois.zip", every=2, values=values))
    assert reader.has_instances
    ids = reader.read_instances(Box.of_shape(SAMPLE))
    assert ids.dtype == np.uint32
    assert [sorted(set(ids[z].ravel())) for z in (2, 3, 6)] == [[0, 1, 2], [0], [0, 3]]
    np.testing.assert_array_equal(ids > 0, reader.read(Box.of_shape(SAMPLE)) == 2)


def test_rois_may_mark_what_to_ignore(rois):
    values = {"background": 8, "neuron": 9, "ignore": 1}
    reader = _reader(rois, _annotation(source="rois.zip", every=1, values=values))
    assert np.bincount(reader.read(BOX).ravel()).tolist() == [BOX.size - 27, 0, 0, 27]
    assert not reader.read_instances(BOX).any()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "either background or was not looked at, .* declare .* `slices`, or all of them by `every = 1`"),
        ({"slices": (0, 2)}, "the ROI 'c' lies on slice 5 of ImageJ, plane 4 of its box, which is not declared"),
        ({"every": 1, "values": {"neuron": 2}}, "none of its `values` is 1"),
        ({"every": 1, "box": ((2, 8), (3, 12), (4, 9))}, "the ROI 'b' lies wholly outside"),
    ],
)
def test_what_does_not_fit_an_roi_set_is_refused(rois, given, said):
    with pytest.raises(UserError, match=said):
        _reader(rois, _annotation(**{"source": "rois.zip", "values": {}} | given))


def _numbers(root):
    """BOX as a label image: 0 background, 3 ignored, all else the numbers of neurons."""
    numbers = np.random.default_rng(1).integers(0, 90_000, BOX.shape).astype(np.uint32)
    numbers[:, :2] = 0
    numbers[:, 2:4] = 3
    zarr.create_array(str(root / "cells.zarr"), data=numbers, chunks=(4, 5, 6))
    tifffile.imwrite(root / "cells.tif", numbers, photometric="minisblack")
    return numbers


@pytest.mark.parametrize("source", ["cells.zarr", "cells.tif"])
def test_a_label_image_holds_one_neuron_per_value(root, source):
    numbers = _numbers(root)
    reader = _reader(root, _annotation(source=source, values={"neuron": "instances", "ignore": 3}))
    reader = pickle.loads(pickle.dumps(reader))
    labels = reader.read(BOX)
    np.testing.assert_array_equal(labels, np.select([numbers == 0, numbers == 3], [1, 3], 2))
    assert reader.has_instances
    np.testing.assert_array_equal(reader.read_instances(BOX), np.where(labels == 2, numbers, 0))
    assert json.loads(json.dumps(reader.identity())) == reader.identity()


def test_labels_of_the_whole_sample_are_cut_to_their_box(root):
    whole = np.arange(np.prod(SAMPLE)).reshape(SAMPLE).astype(np.int32)
    zarr.create_array(str(root / "whole.zarr"), data=whole, chunks=(4, 5, 6))
    ids = _reader(root, _annotation(source="whole.zarr", values={"neuron": "instances"})).read_instances(BOX)
    np.testing.assert_array_equal(ids, whole[BOX.slices])


def test_masks_have_no_instances(root):
    reader = _reader(root, _annotation())
    assert not reader.has_instances
    assert not reader.read_instances(BOX).any()


def test_numbers_of_different_annotations_differ_and_follow_the_labels(rois):
    numbers = _numbers(rois)
    cells = _annotation(source="cells.zarr", values={"neuron": "instances", "ignore": 3})
    outlines = _annotation(source="rois.zip", slices=(0, 4), values={})
    reader = _reader(rois, cells, _annotation(), outlines)
    ids, labels = reader.read_instances(BOX), reader.read(BOX)
    assert set(np.unique(ids[0])) == {0, 1 + 2**31, 2 + 2**31}  # the second of two annotations with numbers
    left = (EXPECTED[DRAWN] == 0)[1]  # plane 1 has no outlines: the mask, without numbers, wins where it labels
    np.testing.assert_array_equal(ids[1], np.where(left & (labels[1] == 2), numbers[1], 0))
    assert not ids[labels != 2].any()


@pytest.mark.parametrize(("most", "others", "bits"), [(2**32, 0, 32), (2**31, 1, 31), (2**30, 2, 30)])
def test_numbers_that_do_not_fit_are_refused(root, most, others, bits):
    numbers = np.full(BOX.shape, most - 1, np.uint64)
    values = {"neuron": "instances"}
    for name, value in (("fits.zarr", most - 1), ("wide.zarr", most)):
        numbers[3, 3, 3] = value
        zarr.create_array(str(root / name), data=numbers, chunks=(4, 5, 6))
    more = [_annotation(values={"neuron": "instances"})] * others
    fits = _reader(root, _annotation(source="fits.zarr", values=values), *more)
    assert fits.pieces[0].read_instances(BOX).max() == most - 1
    fits.read_instances(BOX)
    wide = _reader(root, _annotation(source="wide.zarr", values=values), *more)
    with pytest.raises(Failure, match=rf"annotation wide.zarr .* the instance {most} does not fit in .*{bits} bits"):
        wide.read_instances(BOX)


def test_the_identity_of_a_mask_is_that_of_earlier_releases(root):
    found = (root / "a.tif").stat()
    assert _reader(root, _annotation(every=3)).identity() == {
        "kind": "annotations",
        "pieces": [
            {
                "box": [[2, 8], [3, 12], [4, 15]],
                "planes": [0, 3],
                "values": {"background": 0, "neuron": 1, "ignore": 3},
                "source": {"kind": "TIFF", "files": {"a.tif": [found.st_size, found.st_mtime_ns]}},
            }
        ],
    }


class _Image:
    def __init__(self, array):
        self.array = array

    def read(self, box, channels):
        return self.array[None][(list(channels), *box.slices)]


@pytest.mark.parametrize("whole", [False, True])
def test_an_annotation_whose_raw_crop_is_not_in_the_sample_is_refused(root, whole):
    image = np.random.default_rng(5).integers(0, 60_000, SAMPLE).astype(np.uint16)
    tifffile.imwrite(root / "crop.tif", image if whole else image[BOX.slices], photometric="minisblack")
    reader = _reader(root, _annotation(), _annotation(crop="crop.tif"))
    check_crops(reader, _Image(image), 0)
    with pytest.raises(
        UserError, match=r"annotation a.tif of sample brain: its raw crop .*crop\.tif differs .* \(1, 0, 2\)"
    ):
        check_crops(reader, _Image(np.roll(image, (1, 0, 2), (0, 1, 2))), 0)
    assert "crop" not in reader.identity()["pieces"][0]
    assert "crop.tif" in reader.identity()["pieces"][1]["crop"]["files"]


def test_a_raw_crop_has_the_shape_of_the_box_and_one_channel(root):
    for name, shape in (("small.tif", (3, 9, 11)), ("two.tif", (6, 2, 9, 11))):
        axes = {"axes": "ZCYX"[-len(shape) :] if len(shape) == 4 else "ZYX"}
        tifffile.imwrite(root / name, np.zeros(shape, np.uint8), imagej=True, metadata=axes)
    with pytest.raises(UserError, match=r"raw crop .*small\.tif: the file has the shape \(3, 9, 11\)"):
        _reader(root, _annotation(crop="small.tif"))
    with pytest.raises(UserError, match=r"raw crop .*two\.tif has 2 channels"):
        _reader(root, _annotation(crop="two.tif"))
    with pytest.raises(UserError, match=r"none\.tif: there is no such file"):
        _reader(root, _annotation(crop="none.tif"))
