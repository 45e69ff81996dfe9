"""Volumes of the store: what is written comes back, or says what is wrong with it."""

import errno
import json
import pickle
import resource
import warnings
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neurovol.errors import Failure, UserError
from neurovol.geometry import BlockGrid, Box
from neurovol.volume.omezarr import (
    VolumeReader,
    VolumeWriter,
    create_volume,
    finish_volume,
    open_volume,
    register_label,
    sweep_partial,
)
from neurovol.volume.pyramid import downsample

SHAPE = (13, 31, 37)
FACTORS = [(1, 2, 2), (2, 2, 2)]
GEOMETRY = {
    "shape": SHAPE,
    "voxel_size_um": (5.0, 2.0, 2.0),
    "chunk": (4, 8, 8),
    "shard": (8, 16, 16),
    "factors": FACTORS,
}
IMAGE = np.random.default_rng(0).integers(0, 60000, (2, *SHAPE)).astype(np.uint16)
LABELS = np.random.default_rng(1).integers(0, 4, SHAPE).astype(np.uint8)


def _create(path: Path, channels: int | None = 2, dtype=np.uint16, **changed) -> None:
    create_volume(path, channels=channels, dtype=dtype, **(GEOMETRY | changed))


def _fill(path: Path, array: np.ndarray, how="mean") -> None:
    info = open_volume(path, allow_incomplete=True)
    for level in range(info.levels):
        if level:
            array = downsample(array, info.factors[level - 1], how)
        grid = BlockGrid(info.level_shape(level), info.shard(level), info.shard(level))
        for block in grid:
            VolumeWriter(str(path), level).write(block.write, array[(..., *block.write.slices)])


def _image(path: Path) -> Path:
    _create(path)
    _fill(path, IMAGE)
    finish_volume(path, name="brain", attributes={"normalisation": [1, 2]}, omero=[(10, 900), (5, 5)])
    return path


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """A finished image that tests only read."""
    return _image(tmp_path_factory.mktemp("store") / "image.ome.zarr")


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.builds(
        lambda *pairs: Box.from_pairs(sorted(p) for p in pairs),
        *(st.tuples(st.integers(0, n), st.integers(0, n)) for n in SHAPE),
    )
)
def test_any_box_is_the_same_crop_of_the_whole(image, box):
    reader = VolumeReader(str(image))
    np.testing.assert_array_equal(reader.read(box), IMAGE[(..., *box.slices)])
    np.testing.assert_array_equal(reader.read(box, (1,)), IMAGE[(slice(1, 2), *box.slices)])
    np.testing.assert_array_equal(reader.read(box, (1, 0)), IMAGE[(slice(None, None, -1), *box.slices)])


def test_every_level_is_made_of_the_one_below(image):
    info = open_volume(image)
    assert [info.level_shape(n) for n in range(info.levels)] == [(13, 31, 37), (13, 16, 19), (7, 8, 10)]
    assert [info.shard(n) for n in range(info.levels)] == [(8, 16, 16), (8, 16, 16), (8, 8, 16)]
    level_1 = VolumeReader(str(image), 1).read(Box.of_shape(info.level_shape(1)))
    np.testing.assert_array_equal(level_1, downsample(IMAGE, FACTORS[0], "mean"))


def test_the_record_comes_back(image):
    info = open_volume(image)
    assert (info.shape, info.channels, info.dtype) == (SHAPE, 2, np.uint16)
    assert info.voxel_size_um == (5.0, 2.0, 2.0)
    assert info.complete
    assert info.attributes == {"normalisation": [1, 2]}


def test_readers_and_writers_are_picklable(image):
    reader = VolumeReader(str(image))
    reader.read(Box.of_shape((1, 1, 1)))
    assert pickle.loads(pickle.dumps(reader)) == reader
    assert pickle.loads(pickle.dumps(VolumeWriter(str(image), 1))) == VolumeWriter(str(image), 1)


def test_the_receipt_is_the_checksum_of_the_bytes_in_c_order(tmp_path):
    _create(tmp_path / "v")
    box = Box((8, 16, 32), SHAPE)
    part = IMAGE[(..., *box.slices)]
    receipt = VolumeWriter(str(tmp_path / "v")).write(box, np.asfortranarray(part))
    assert receipt.box == box
    assert receipt.crc32c == google_crc32c.value(part.tobytes(order="C"))


def test_image_and_labels_are_valid_ome_zarr(tmp_path):
    from ome_zarr_models.v05 import Image
    from ome_zarr_models.v05.labels import Labels

    image = _image(tmp_path / "image.ome.zarr")
    for name in ("train", "test"):
        _create(image / "labels" / name, None, np.uint8, sparse=True)
        _fill(image / "labels" / name, LABELS, "max")
        finish_volume(image / "labels" / name, name=name, attributes={}, label=True)
        register_label(image, name)
        register_label(image, name)
    with warnings.catch_warnings():  # of pydantic, about the models themselves
        warnings.simplefilter("ignore")
        model = Image.from_zarr(zarr.open_group(image, mode="r"))
        labels = Labels.from_zarr(zarr.open_group(image / "labels", mode="r"))
    assert labels.label_paths == ["test", "train"]
    assert [axis.name for axis in model.attributes.ome.multiscales[0].axes] == ["c", "z", "y", "x"]
    assert [d.path for d in model.attributes.ome.multiscales[0].datasets] == ["0", "1", "2"]
    label = json.loads((image / "labels" / "train" / "zarr.json").read_text())["attributes"]["ome"]
    assert label["image-label"]["source"] == {"image": "../../"}


def test_levels_lie_where_their_voxels_lie(image):
    ome = json.loads((image / "zarr.json").read_text())["attributes"]["ome"]
    scale, shift = ome["multiscales"][0]["datasets"][2]["coordinateTransformations"]
    assert scale == {"type": "scale", "scale": [1.0, 10.0, 8.0, 8.0]}
    assert shift == {"type": "translation", "translation": [0.0, 2.5, 3.0, 3.0]}
    assert [axis.get("unit") for axis in ome["multiscales"][0]["axes"]] == [None] + ["micrometer"] * 3
    assert [c["window"] for c in ome["omero"]["channels"]] == [
        {"min": 0, "max": 65535, "start": 10, "end": 900},
        {"min": 0, "max": 65535, "start": 5, "end": 6},
    ]


def test_chunks_and_shard_indices_carry_checksums(image):
    for array in ("0", "2"):
        (sharding,) = json.loads((image / array / "zarr.json").read_text())["codecs"]
        assert sharding["configuration"]["codecs"][-1]["name"] == "crc32c"
        assert sharding["configuration"]["index_codecs"][-1]["name"] == "crc32c"


def test_an_incomplete_volume_is_refused_unless_asked_for(tmp_path):
    path = tmp_path / "v"
    _create(path)
    _fill(path, IMAGE)
    assert "ome" not in json.loads((path / "zarr.json").read_text())["attributes"]
    with pytest.raises(UserError, match="is incomplete"):
        open_volume(path)
    with pytest.raises(UserError, match="is incomplete"):
        VolumeReader(str(path)).read(Box.of_shape(SHAPE))
    read = VolumeReader(str(path), allow_incomplete=True).read(Box.of_shape(SHAPE))
    np.testing.assert_array_equal(read, IMAGE)
    finish_volume(path, name="v", attributes={})
    np.testing.assert_array_equal(VolumeReader(str(path)).read(Box.of_shape(SHAPE)), IMAGE)


def test_a_volume_is_not_complete_while_a_shard_is_missing(tmp_path):
    path = tmp_path / "v"
    _create(path)
    with pytest.raises(Failure, match="12 of the shards of level 0 are missing"):
        finish_volume(path, name="v", attributes={})
    _fill(path, IMAGE)
    open_volume(path, allow_incomplete=True).shard_file(2, (0, 0, 0)).unlink()
    with pytest.raises(Failure, match="1 of the shards of level 2 are missing"):
        finish_volume(path, name="v", attributes={})
    assert not open_volume(path, allow_incomplete=True).complete


@pytest.mark.parametrize("sparse", [False, True])
def test_shards_of_zeros_are_written_too(tmp_path, sparse):
    _create(tmp_path / "v", sparse=sparse)
    _fill(tmp_path / "v", np.zeros_like(IMAGE))
    finish_volume(tmp_path / "v", name="v", attributes={})
    assert open_volume(tmp_path / "v").shard_file(0, (0, 0, 0)).exists()
    assert not VolumeReader(str(tmp_path / "v")).read(Box.of_shape(SHAPE)).any()


def test_of_a_sparse_volume_only_shards_in_its_boxes_must_exist(tmp_path):
    _create(tmp_path / "v", None, np.uint8, sparse=True)
    whole, box = Box.of_shape(SHAPE), Box((0, 0, 0), (8, 16, 16))
    VolumeWriter(str(tmp_path / "v")).write(box, np.ones(box.shape, np.uint8))
    info = open_volume(tmp_path / "v", allow_incomplete=True)
    for level in range(1, info.levels):
        part = Box((0, 0, 0), info.shard(level)).intersect(Box.of_shape(info.level_shape(level)))
        VolumeWriter(str(tmp_path / "v"), level).write(part, np.ones(part.shape, np.uint8))
    with pytest.raises(Failure, match="are missing or empty"):
        finish_volume(tmp_path / "v", name="v", attributes={"boxes": [whole.pairs]})
    finish_volume(tmp_path / "v", name="v", attributes={"boxes": [box.pairs]})
    assert VolumeReader(str(tmp_path / "v")).read(whole).sum() == box.size
    info.shard_file(0, (0, 0, 0)).unlink()
    with pytest.raises(Failure, match="0/c/0/0/0: the shard is missing"):
        VolumeReader(str(tmp_path / "v")).read(box)


def test_a_missing_or_empty_shard_is_an_error_never_zeros(tmp_path):
    path = _image(tmp_path / "v")
    file = open_volume(path).shard_file(0, (1, 0, 2))
    box = Box((7, 15, 31), (9, 17, 33))
    for spoil in (lambda: file.write_bytes(b""), file.unlink):
        spoil()
        with pytest.raises(Failure, match=r"0/c/0/1/0/2: the shard is (empty|missing)"):
            VolumeReader(str(path)).read(box)
    np.testing.assert_array_equal(VolumeReader(str(path)).read(Box((0, 0, 0), (8, 31, 37))), IMAGE[:, :8])


def test_an_empty_shard_of_a_sparse_volume_is_an_error_too(tmp_path):
    path = tmp_path / "v"
    _create(path, None, np.uint8, sparse=True)
    _fill(path, LABELS)
    open_volume(path, allow_incomplete=True).shard_file(0, (0, 0, 0)).write_bytes(b"")
    with pytest.raises(Failure, match="the shard is empty"):
        VolumeReader(str(path), allow_incomplete=True).read(Box.of_shape((1, 1, 1)))


@pytest.mark.parametrize("where", [20, -2, "cut"])
@pytest.mark.parametrize(("channels", "dtype", "array"), [(2, np.uint16, IMAGE), (None, np.uint8, LABELS)])
def test_a_damaged_shard_is_an_error_and_can_be_written_anew(tmp_path, where, channels, dtype, array):
    path = tmp_path / "v"
    _create(path, channels, dtype)
    _fill(path, array)
    finish_volume(path, name="v", attributes={})
    file = open_volume(path).shard_file(0, (0, 0, 0))
    content = bytearray(file.read_bytes())
    if where == "cut":
        del content[len(content) // 2 :]
    else:
        content[where] ^= 1
    file.write_bytes(content)
    box = Box((0, 0, 0), (8, 16, 16))
    with pytest.raises(Failure, match=r"v: level 0, box \(\(0, 8\), \(0, 16\), \(0, 16\)\) .* could not be read"):
        VolumeReader(str(path)).read(box)
    VolumeWriter(str(path)).write(box, array[(..., *box.slices)])
    np.testing.assert_array_equal(VolumeReader(str(path)).read(box), array[(..., *box.slices)])


@pytest.mark.parametrize(
    ("box", "said"),
    [
        (Box((0, 0, 0), (4, 16, 16)), "axis z: 0 to 4 is not a whole number of shards of 8 in a volume of 13"),
        (Box((0, 3, 0), (8, 16, 16)), "axis y: 3 to 16 is not a whole number of shards of 16"),
        (Box((0, 0, 32), (8, 16, 48)), "axis x: 32 to 48 is not a whole number of shards of 16 in a volume of 37"),
        (Box((0, 0, 0), (0, 16, 16)), "axis z: 0 to 0"),
    ],
)
def test_only_whole_shards_are_written(tmp_path, box, said):
    _create(tmp_path / "v")
    with pytest.raises(ValueError, match=said):
        VolumeWriter(str(tmp_path / "v")).write(box, np.zeros((2, *box.shape), np.uint16))


def test_arrays_of_another_shape_or_type_are_not_written(tmp_path):
    _create(tmp_path / "v")
    box = Box((0, 0, 0), (8, 16, 16))
    for array in (np.zeros((2, 8, 16, 16), np.uint8), np.zeros((8, 16, 16), np.uint16)):
        with pytest.raises(ValueError, match=r"is not uint16 of shape \(2, 8, 16, 16\)"):
            VolumeWriter(str(tmp_path / "v")).write(box, array)


def test_boxes_and_levels_that_do_not_exist_are_not_read(image):
    with pytest.raises(ValueError, match=r"leaves level 0 .* shape \(13, 31, 37\)"):
        VolumeReader(str(image)).read(Box((0, 0, 0), (14, 1, 1)))
    with pytest.raises(ValueError, match="has no level 3"):
        VolumeReader(str(image), 3).read(Box((0, 0, 0), (1, 1, 1)))
    with pytest.raises(UserError, match="there is no volume"):
        VolumeReader(str(image) + "x").read(Box((0, 0, 0), (1, 1, 1)))


def test_a_half_written_volume_is_taken_up_again(tmp_path):
    path = tmp_path / "v"
    _create(path)
    box = Box((0, 0, 0), (8, 16, 16))
    VolumeWriter(str(path)).write(box, IMAGE[(..., *box.slices)])
    (path / "2" / "zarr.json").unlink()  # as if killed while creating
    _create(path)
    np.testing.assert_array_equal(VolumeReader(str(path), allow_incomplete=True).read(box), IMAGE[(..., *box.slices)])
    assert (path / "2" / "zarr.json").exists()


def test_another_volume_or_thing_at_the_path_is_not_overwritten(tmp_path):
    path = tmp_path / "v"
    _create(path)
    with pytest.raises(
        UserError, match=r"shape \[13, 31, 37\] instead of \[13, 31, 38\], sparse False instead of True"
    ):
        _create(path, shape=(13, 31, 38), sparse=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="holds other things"):
        _create(tmp_path / "other")
    zarr.create_group(tmp_path / "foreign")
    with pytest.raises(UserError, match="no volume made by neurovol"):
        _create(tmp_path / "foreign")


def test_leftovers_of_killed_writes_are_swept(tmp_path):
    path = tmp_path / "v"
    path.mkdir()
    (path / "zarr.json.12.partial").write_text("torn")
    _create(path)
    (path / "0" / "c" / "0").mkdir(parents=True)
    (path / "0" / "c" / "0" / "0.abc.partial").write_text("torn")
    sweep_partial(path)
    assert not list(path.rglob("*.partial"))
    assert (path / "0" / "zarr.json").exists()


def test_a_full_disk_says_so(tmp_path):
    _create(tmp_path / "v")
    box = Box((0, 0, 0), (8, 16, 16))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # the nearest to a full disk that a test can have
    try:
        with pytest.raises(Failure, match=r"disk full: .*free space and run again, finished blocks are kept") as caught:
            VolumeWriter(str(tmp_path / "v")).write(box, IMAGE[(..., *box.slices)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.__cause__.errno == errno.EFBIG
