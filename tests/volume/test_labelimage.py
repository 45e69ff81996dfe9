"""Label images as Zarr, with the metadata of napari-ome-zarr and ome-zarr, and as TIFF masks of wide integers."""

import json
import pickle
from pathlib import Path

import numcodecs
import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zarr.codecs import BytesCodec, Crc32cCodec, ZstdCodec

from neurovol.errors import Failure, UserError
from neurovol.geometry import Box
from neurovol.volume.labelimage import LabelImage, open_labels
from neurovol.volume.tiff import TiffSource

LABELS = np.random.default_rng(0).integers(0, 70_000, (7, 13, 17))
WHOLE = Box.of_shape(LABELS.shape)
CHUNKS = (3, 5, 8)

boxes = st.builds(
    lambda *pairs: Box.from_pairs(sorted(p) for p in pairs),
    *(st.tuples(st.integers(0, n - 1), st.integers(1, n)) for n in LABELS.shape),
)

WAYS = {
    "v2": {"zarr_format": 2, "compressors": numcodecs.Blosc()},
    "v2 slashes": {"zarr_format": 2, "chunk_key_encoding": {"name": "v2", "separator": "/"}},
    "v2 big-endian": {"zarr_format": 2, "dtype": ">i4"},
    "v3": {},
    "v3 uint64": {"dtype": "uint64"},
    "v3 int64": {"dtype": "int64", "serializer": BytesCodec(endian="big")},
    "v3 sharded": {"shards": (6, 10, 16), "compressors": [ZstdCodec(), Crc32cCodec()]},
    "v3 in one chunk": {"chunks": LABELS.shape},
}


def write_array(folder: Path, labels: np.ndarray = LABELS, **given) -> Path:
    options = {"chunks": (1,) * (labels.ndim - 3) + CHUNKS[-labels.ndim :], "dtype": "uint32"} | given
    zarr.create_array(str(folder), shape=labels.shape, **options)[...] = labels
    return folder


def write_ome(folder: Path, version: str, axes: str, labels: np.ndarray) -> Path:
    """A group of labels of two levels, as ome-zarr writes it."""
    zarr_format = 3 if version == "0.5" else 2
    kinds = {"t": "time", "c": "channel"}
    scale = [{"type": "scale", "scale": [1.0] * len(axes)}]
    multiscale = {
        "axes": [{"name": a, "type": kinds.get(a, "space")} for a in axes],
        "datasets": [{"path": f"s{level}", "coordinateTransformations": scale} for level in range(2)],
    }
    ome = {"multiscales": [multiscale], "image-label": {"version": version}}
    attributes = {"ome": {"version": version, **ome}} if version == "0.5" else ome
    zarr.create_group(str(folder), zarr_format=zarr_format, attributes=attributes)
    for level in range(2):
        write_array(folder / f"s{level}", labels[..., :: level + 1, :: level + 1], zarr_format=zarr_format)
    return folder


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(box=boxes)
def test_any_box_is_the_same_crop_of_the_whole(tmp_path, way, box):
    if not (tmp_path / "l.zarr").exists():
        write_array(tmp_path / "l.zarr", **WAYS[way])
    image = open_labels(tmp_path / "l.zarr")
    read = image.read(box, (0,))
    assert (image.shape, read.dtype) == ((1, *LABELS.shape), image.dtype)
    assert read.dtype.isnative
    np.testing.assert_array_equal(read[0], LABELS[box.slices])


@pytest.mark.parametrize(("version", "axes"), [("0.4", "zyx"), ("0.4", "tczyx"), ("0.5", "zyx"), ("0.5", "czyx")])
def test_the_finest_level_of_ome_zarr_labels_is_read(tmp_path, version, axes):
    labels = LABELS.reshape((1,) * (len(axes) - 3) + LABELS.shape)
    image = open_labels(write_ome(tmp_path / "cells", version, axes, labels))
    np.testing.assert_array_equal(image.read(WHOLE, (0,))[0], LABELS)


@pytest.mark.parametrize("shape", [(1, 7, 13, 17), (1, 1, 7, 13, 17)])
def test_axes_of_length_one_are_dropped_without_names_too(tmp_path, shape):
    image = open_labels(write_array(tmp_path / "l.zarr", LABELS.reshape(shape)))
    np.testing.assert_array_equal(image.read(WHOLE, (0,))[0], LABELS)


def test_a_single_plane_and_a_mask_of_bool_are_labels(tmp_path):
    image = open_labels(write_array(tmp_path / "p.zarr", LABELS[0], chunks=(5, 8)))
    np.testing.assert_array_equal(image.read(Box((0, 1, 2), (1, 9, 9)), (0,))[0], LABELS[:1, 1:9, 2:9])
    image = open_labels(write_array(tmp_path / "b.zarr", LABELS > 9, dtype=bool))
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image.read(WHOLE, (0,))[0], LABELS > 9)


def test_a_chunk_that_is_not_there_holds_the_fill_value(tmp_path):
    write_array(tmp_path / "l.zarr", np.zeros_like(LABELS))
    assert not (tmp_path / "l.zarr" / "c").exists()
    assert not open_labels(tmp_path / "l.zarr").read(WHOLE, (0,)).any()


def test_only_the_chunks_of_a_box_are_read(tmp_path):
    image = open_labels(write_array(tmp_path / "l.zarr"))
    (tmp_path / "l.zarr" / "c" / "2" / "0" / "0").write_bytes(b"broken")
    np.testing.assert_array_equal(image.read(Box((0, 0, 0), (3, 13, 17)), (0,))[0], LABELS[:3])
    with pytest.raises(Failure, match=r"l\.zarr: box .* c/2/0/0 has changed since it was opened"):
        image.read(WHOLE, (0,))


def test_labels_are_picklable_and_small_and_notice_a_change(tmp_path):
    image = open_labels(write_array(tmp_path / "l.zarr"))
    assert len(pickle.dumps(image)) < 1000
    before = json.dumps(image.identity())
    assert image.identity() == open_labels(tmp_path / "l.zarr").identity()
    zarr.open_array(str(tmp_path / "l.zarr"))[0, 0, 0] = 5
    assert json.dumps(open_labels(tmp_path / "l.zarr").identity()) != before
    elsewhere = LabelImage(image.path, image.axes, image.shape, image.dtype, "0" * 64)
    with pytest.raises(Failure, match="has changed since it was opened"):
        elsewhere.read(WHOLE, (0,))


def test_an_image_is_not_taken_for_labels(tmp_path):
    image = write_ome(tmp_path / "brain.zarr", "0.5", "zyx", LABELS)
    zarr.create_group(str(image / "labels"), zarr_format=3, attributes={"ome": {"labels": ["cells"]}})
    write_ome(image / "labels" / "cells", "0.5", "zyx", LABELS)
    for folder, there in ((image, "labels/cells"), (image / "labels", "cells")):
        with pytest.raises(UserError, match=f"no image of labels; it holds {there}: give one of them"):
            open_labels(folder)
    np.testing.assert_array_equal(open_labels(image / "labels" / "cells").read(WHOLE, (0,))[0], LABELS)


@pytest.mark.parametrize(
    ("labels", "given", "said"),
    [
        (LABELS, {"dtype": "float32"}, "voxels are float32; labels are integers"),
        (np.stack([LABELS, LABELS]), {}, r"shape is \(2, 7, 13, 17\); labels have the axes z, y, x"),
        (
            LABELS,
            {"dimension_names": ["x", "y", "z"]},
            "its axes are x, y, z; labels have the axes z, y, x, in that order",
        ),
        (LABELS, {"dimension_names": ["t", "y", "x"]}, "its axes are t, y, x"),
        (LABELS[0, 0], {"chunks": (5,)}, r"shape is \(17,\)"),
    ],
)
def test_what_is_no_image_of_labels_is_refused(tmp_path, labels, given, said):
    with pytest.raises(UserError, match=said):
        open_labels(write_array(tmp_path / "l.zarr", labels, **given))


def test_broken_metadata_are_refused(tmp_path):
    for text in ("{", "[]", '{"node_type": "array", "shape": [3]}', '{"attributes": 3}', "{}"):
        (tmp_path / "zarr.json").write_text(text)
        with pytest.raises(UserError, match=str(tmp_path)):
            open_labels(tmp_path)


def test_a_level_outside_the_group_is_refused(tmp_path):
    write_array(tmp_path / "outside")
    ome = {"multiscales": [{"axes": [{"name": a} for a in "zyx"], "datasets": [{"path": "../outside"}]}]}
    zarr.create_group(str(tmp_path / "cells"), zarr_format=3, attributes={"ome": ome})
    with pytest.raises(UserError, match="there is no Zarr array"):
        open_labels(tmp_path / "cells")


def test_pickles_are_never_run(tmp_path):
    write_array(tmp_path / "l.zarr", zarr_format=2)
    about = json.loads((tmp_path / "l.zarr" / ".zarray").read_text())
    (tmp_path / "l.zarr" / ".zarray").write_text(json.dumps(about | {"filters": [{"id": "pickle"}]}))
    with pytest.raises(UserError, match="is compressed by 'pickle', which is not among"):
        open_labels(tmp_path / "l.zarr")


def test_an_empty_chunk_is_refused(tmp_path):
    write_array(tmp_path / "l.zarr")
    (tmp_path / "l.zarr" / "c" / "1" / "1" / "1").write_bytes(b"")
    with pytest.raises(UserError, match="c/1/1/1: this chunk's file is empty"):
        open_labels(tmp_path / "l.zarr")


@pytest.mark.parametrize("dtype", ["uint32", "int32", "int16"])
@pytest.mark.parametrize("options", [{}, {"compression": "zlib", "byteorder": ">"}])
def test_tiffs_of_wide_integers_are_read(tmp_path, dtype, options):
    labels = LABELS.astype(dtype)
    tifffile.imwrite(tmp_path / "l.tif", labels, photometric="minisblack", **options)
    mask = pickle.loads(pickle.dumps(open_labels(tmp_path / "l.tif")))
    read = mask.read(Box((1, 2, 3), (6, 9, 17)), (0,))
    assert read.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(read[0], labels[1:6, 2:9, 3:17])
    tifffile.imwrite(tmp_path / "l.tif", labels[:6], photometric="minisblack", **options)
    with pytest.raises(Failure, match=r"l\.tif: plane z = 0 could not be read: it has changed"):
        mask.read(WHOLE, (0,))
    assert mask.identity() != open_labels(tmp_path / "l.tif").identity()


def test_tiffs_of_8_and_16_bits_are_read_as_before(tmp_path):
    tifffile.imwrite(tmp_path / "l.tif", LABELS.astype(np.uint16), photometric="minisblack")
    assert isinstance(open_labels(tmp_path / "l.tif"), TiffSource)
    with pytest.raises(UserError, match="there is no such file"):
        open_labels(tmp_path / "none.tif")
