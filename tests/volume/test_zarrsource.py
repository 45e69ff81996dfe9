"""Zarr as a source: stores written by zarr, metadata of OME-Zarr written by hand, read back in parts."""

import json
import pickle
import shutil
from pathlib import Path

import numcodecs
import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec, TransposeCodec, ZstdCodec

from neurovol.errors import Failure, UserError
from neurovol.geometry import Box
from neurovol.volume.omezarr import VolumeWriter, create_volume, finish_volume
from neurovol.volume.zarrsource import open_zarr

STACK = np.random.default_rng(0).integers(0, 60000, (3, 7, 13, 31)).astype(np.uint16)  # c, z, y, x
CHUNKS = (1, 3, 5, 8)

boxes = st.builds(
    lambda *pairs: Box.from_pairs(sorted(p) for p in pairs),
    *(st.tuples(st.integers(0, n), st.integers(0, n)) for n in STACK.shape[1:]),
)
channels = st.lists(st.integers(0, 2), min_size=1, max_size=4).map(tuple)

WAYS = {
    "v2 blosc": {"zarr_format": 2, "compressors": numcodecs.Blosc("zstd")},
    "v2 zlib": {"zarr_format": 2, "compressors": numcodecs.Zlib()},
    "v2 plain": {"zarr_format": 2, "compressors": None},
    "v2 slashes": {"zarr_format": 2, "chunk_key_encoding": {"name": "v2", "separator": "/"}},
    "v2 Fortran order": {"zarr_format": 2, "order": "F"},
    "v2 big-endian": {"zarr_format": 2, "dtype": ">u2"},
    "v2 with a filter": {"zarr_format": 2, "filters": [numcodecs.Delta("<u2")]},
    "v2 channels together": {"zarr_format": 2, "chunks": (3, 3, 5, 8)},
    "v3": {},
    "v3 dots": {"chunk_key_encoding": {"name": "default", "separator": "."}},
    "v3 keys as v2": {"chunk_key_encoding": {"name": "v2", "separator": "/"}},
    "v3 big-endian": {"serializer": BytesCodec(endian="big")},
    "v3 transposed": {"filters": [TransposeCodec(order=(3, 1, 2, 0))]},
    "v3 one chunk": {"chunks": STACK.shape},
    "v3 sharded": {"shards": (3, 6, 10, 16), "compressors": [ZstdCodec(), Crc32cCodec()]},
    "v3 shards in shards": {
        "chunks": (3, 6, 10, 16),
        "serializer": ShardingCodec(chunk_shape=(1, 6, 5, 16), codecs=[ShardingCodec(chunk_shape=CHUNKS)]),
        "compressors": None,
    },
}


def write_array(folder: Path, array: np.ndarray = STACK, **given: object) -> Path:
    options = {"chunks": CHUNKS[-array.ndim :], "dtype": array.dtype} | given
    store = zarr.create_array(str(folder), shape=array.shape, **options)
    store[...] = array
    return folder


def write_json(file: Path, content: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def multiscales(axes: list, scale: list[float] | None, *, whole: list[float] | None = None, path: str = "0") -> list:
    dataset: dict = {"path": path}
    if scale is not None:
        dataset["coordinateTransformations"] = [
            {"type": "scale", "scale": scale},
            {"type": "translation", "translation": [7.0] * len(scale)},
        ]
    image: dict = {"axes": axes, "datasets": [dataset, {"path": "1"}]}
    if whole is not None:
        image["coordinateTransformations"] = [{"type": "scale", "scale": whole}]
    return [image]


def axes(names: str, unit: str | None = "micrometer") -> list[dict]:
    kinds = {"t": "time", "c": "channel"}
    return [
        {"name": n, "type": kinds.get(n, "space")} | ({} if n in kinds or unit is None else {"unit": unit})
        for n in names
    ]


def write_image(folder: Path, array: np.ndarray, images: list, version: str = "0.5", path: str = "0") -> Path:
    """An OME-Zarr image of two levels; of 0.4 in zarr v2, of 0.5 in v3."""
    if version == "0.5":
        about = {
            "zarr_format": 3,
            "node_type": "group",
            "attributes": {"ome": {"version": "0.5", "multiscales": images}},
        }
        write_json(folder / "zarr.json", about)
    else:
        write_json(folder / ".zgroup", {"zarr_format": 2})
        write_json(folder / ".zattrs", {"multiscales": [image | {"version": "0.4"} for image in images]})
    for name, level in ((path, array), ("1", array[..., ::2, ::2])):
        chunks = (*(1,) * (array.ndim - 2), 5, 8)
        write_array(folder / name, level, zarr_format=3 if version == "0.5" else 2, chunks=chunks)
    return folder


def whole(source) -> np.ndarray:
    return source.read(Box.of_shape(source.shape[1:]), tuple(range(source.shape[0])))


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(box=boxes, wanted=channels)
def test_any_box_is_the_same_crop_of_the_whole(tmp_path, way, box, wanted):
    if not (tmp_path / "a.zarr").exists():
        write_array(tmp_path / "a.zarr", **WAYS[way])
    source = open_zarr(tmp_path / "a.zarr")
    assert source.shape == STACK.shape
    assert source.dtype == np.dtype("=u2")
    assert source.voxel_size_um is None
    read = source.read(box, wanted)
    assert read.dtype.isnative
    np.testing.assert_array_equal(read, STACK[list(wanted)][(..., *box.slices)])


def test_a_box_is_read_into_the_array_given(tmp_path):
    source = open_zarr(write_array(tmp_path / "a.zarr"))
    box = Box((1, 2, 3), (6, 11, 30))
    room = np.zeros((2, 5, 9, 40), np.uint16)
    out = room[..., :27]
    assert source.read(box, (2, 0), out) is out
    np.testing.assert_array_equal(out, STACK[[2, 0]][(..., *box.slices)])
    assert not room[..., 27:].any()


def test_the_grain_is_the_chunk_of_a_shard_or_of_the_array(tmp_path):
    assert open_zarr(write_array(tmp_path / "a")).grain == (3, 5, 8)
    assert open_zarr(write_array(tmp_path / "b", shards=(3, 6, 10, 16))).grain == (3, 5, 8)
    assert open_zarr(write_array(tmp_path / "c", zarr_format=2)).grain == (3, 5, 8)


def test_three_axes_without_names_are_z_y_x_and_uint8_stays_uint8(tmp_path):
    stack = (STACK[0] >> 8).astype(np.uint8)
    source = open_zarr(write_array(tmp_path / "a", stack))
    assert (source.shape, source.dtype) == ((1, 7, 13, 31), np.uint8)
    np.testing.assert_array_equal(whole(source)[0], stack)


@pytest.mark.parametrize(("names", "shape"), [("yxcz", (7, 9, 2, 5)), ("zyxt", (5, 7, 9, 1)), ("cyx", (2, 7, 9))])
def test_axes_go_by_name_in_any_order(tmp_path, names, shape):
    stack = np.arange(np.prod(shape), dtype=np.uint16).reshape(shape)
    wanted = np.einsum(
        f"{names}->{''.join(sorted(names.replace('t', ''), key='czyx'.index))}{'t' * ('t' in names)}", stack
    )
    sizes = dict(zip(names, shape, strict=True))
    wanted = wanted.reshape([sizes.get(a, 1) for a in "czyx"])
    spelled = [{"c": "Channel", "t": "time"}.get(n, n.upper()) for n in names]
    sources = [
        open_zarr(write_array(tmp_path / "v3", stack, chunks=(2,) * stack.ndim, dimension_names=spelled)),
        open_zarr(write_array(tmp_path / "v2", stack, zarr_format=2, attributes={"_ARRAY_DIMENSIONS": spelled})),
    ]
    for source in sources:
        np.testing.assert_array_equal(whole(source), wanted)
        inner = tuple(slice(n // 2, n) for n in wanted.shape[1:])
        box = Box.from_pairs((s.start, s.stop) for s in inner)
        np.testing.assert_array_equal(source.read(box, (0,)), wanted[(slice(0, 1), *inner)])


def test_names_that_say_nothing_are_as_no_names(tmp_path):
    path = write_array(tmp_path / "a", STACK[0], dimension_names=["dim_0", "dim_1", "dim_2"])
    np.testing.assert_array_equal(whole(open_zarr(path)), STACK[:1])


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_of_an_ome_zarr_image_the_finest_level_is_read(tmp_path, version):
    images = multiscales(axes("tczyx"), [1, 1, 2, 0.5, 0.25], whole=[1, 1, 1, 2, 2], path="full")
    source = open_zarr(write_image(tmp_path / "i.zarr", STACK[None], images, version, "full"))
    assert source.shape == STACK.shape
    assert source.voxel_size_um == (2, 1, 0.5)
    assert source.grain == (1, 5, 8)
    np.testing.assert_array_equal(whole(source), STACK)


@pytest.mark.parametrize(
    ("images", "told"),
    [
        (multiscales(axes("zyx", "nanometer"), [500, 100, 100]), (0.5, 0.1, 0.1)),
        (multiscales(axes("zyx", "millimeter"), [0.002, 0.001, 0.001]), (2, 1, 1)),
        (multiscales(axes("zyx", "µm"), [2, 1, 1]), (2, 1, 1)),
        (multiscales(axes("zyx", None), [2, 1, 1]), None),
        (multiscales(axes("zyx", "furlong"), [2, 1, 1]), None),
        (multiscales(axes("zyx"), None), None),
        (multiscales(axes("zyx"), [2, 0, 1]), None),
        (multiscales(["z", "y", "x"], [2, 1, 1]), None),
    ],
)
def test_the_voxel_size_is_told_only_with_its_unit(tmp_path, images, told):
    source = open_zarr(write_image(tmp_path / "i.zarr", STACK[0], images))
    assert source.voxel_size_um == (None if told is None else pytest.approx(told))
    np.testing.assert_array_equal(whole(source)[0], STACK[0])


def test_an_image_without_z_is_one_slice(tmp_path):
    source = open_zarr(write_image(tmp_path / "i.zarr", STACK[:, 0], multiscales(axes("cyx"), [1, 2, 2])))
    assert (source.shape, source.voxel_size_um) == ((3, 1, 13, 31), None)
    np.testing.assert_array_equal(whole(source), STACK[:, :1])


@pytest.mark.parametrize("names", [5, "zyx", {"z": 0}, [1, 2, 3]])
def test_names_that_are_no_list_of_words_are_as_no_names(tmp_path, names):
    path = write_array(tmp_path / "a", STACK[0], zarr_format=2, attributes={"_ARRAY_DIMENSIONS": names})
    np.testing.assert_array_equal(whole(open_zarr(path)), STACK[:1])


def test_a_group_with_a_single_image_stands_for_it(tmp_path):
    """As bioformats2raw writes them: image.zarr/0 is the image."""
    write_json(tmp_path / "i.zarr" / ".zgroup", {"zarr_format": 2})
    write_json(tmp_path / "i.zarr" / ".zattrs", {"bioformats2raw.layout": 3})
    write_json(tmp_path / "i.zarr" / "OME" / ".zgroup", {"zarr_format": 2})
    write_image(tmp_path / "i.zarr" / "0", STACK, multiscales(axes("czyx"), [1, 2, 1, 1]), "0.4")
    source = open_zarr(tmp_path / "i.zarr")
    assert source.voxel_size_um == (2, 1, 1)
    np.testing.assert_array_equal(whole(source), STACK)


@pytest.mark.parametrize("names", [["raw", "mask10", "mask9"], ["A/1/0", "A/2/0", "B/1/0"]])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_of_several_arrays_one_has_to_be_given(tmp_path, names, zarr_format):
    group = zarr.open_group(str(tmp_path / "g.zarr"), mode="w", zarr_format=zarr_format)
    for name in names:
        group.require_group(name.rpartition("/")[0]) if "/" in name else None
        write_array(tmp_path / "g.zarr" / name, zarr_format=zarr_format)
    with pytest.raises(UserError, match=r"several images or arrays: .*give one of them") as caught:
        open_zarr(tmp_path / "g.zarr")
    places = [str(caught.value).index(f"g.zarr/{name}") for name in sorted(names, key=len)]
    assert len(places) == 3
    np.testing.assert_array_equal(whole(open_zarr(tmp_path / "g.zarr" / names[0])), STACK)


def test_a_missing_chunk_is_the_fill_value(tmp_path):
    path = write_array(tmp_path / "a", STACK[0], fill_value=9)
    (path / "c/1/1/2").unlink()
    wanted = STACK[0].copy()
    wanted[3:6, 5:10, 16:24] = 9
    np.testing.assert_array_equal(whole(open_zarr(path))[0], wanted)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_damaged_chunk_is_a_failure_that_names_the_box(tmp_path, zarr_format):
    path = write_array(tmp_path / "a", STACK[0], zarr_format=zarr_format)
    (path / ("1.1.2" if zarr_format == 2 else "c/1/1/2")).write_bytes(b"not compressed at all")
    source = open_zarr(path)
    np.testing.assert_array_equal(source.read(Box((0, 0, 0), (7, 5, 31)), (0,))[0], STACK[0, :, :5])
    with pytest.raises(Failure, match=r"a: box \(\(3, 4\), \(5, 6\), \(0, 17\)\) \(z, y, x\) could not be read: "):
        source.read(Box((3, 5, 0), (4, 6, 17)), (0,))


def test_a_checksum_that_does_not_fit_is_a_failure(tmp_path):
    path = write_array(tmp_path / "a", STACK[0], compressors=[ZstdCodec(), Crc32cCodec()])
    file = path / "c/2/0/0"
    content = bytearray(file.read_bytes())
    content[20] ^= 1
    file.write_bytes(content)
    source = open_zarr(path)
    with pytest.raises(Failure, match="could not be read"):
        source.read(Box((6, 0, 0), (7, 1, 1)), (0,))


def test_only_the_chunks_of_a_box_are_loaded(tmp_path):
    path = write_array(tmp_path / "a", STACK[0])
    source = open_zarr(path)
    for file in (path / "c").rglob("*"):
        if file.is_file() and file != path / "c/1/1/2":
            file.write_bytes(b"spoilt")
    np.testing.assert_array_equal(source.read(Box((3, 5, 16), (6, 10, 24)), (0,))[0], STACK[0, 3:6, 5:10, 16:24])


def test_a_source_is_picklable_and_small(tmp_path):
    source = open_zarr(write_image(tmp_path / "i.zarr", STACK, multiscales(axes("czyx"), [1, 2, 1, 1])))
    pickled = pickle.dumps(source)
    assert len(pickled) < 2000
    np.testing.assert_array_equal(whole(pickle.loads(pickled)), STACK)
    assert pickle.loads(pickled) == source


def test_identity_follows_the_content(tmp_path):
    path = write_array(tmp_path / "a", STACK[0])
    before = open_zarr(path).identity()
    assert before["kind"] == "Zarr"
    files = [f for f in (path / "c").rglob("*") if f.is_file()]
    newest = max(f.stat().st_mtime_ns for f in files)
    assert before["chunks"] == {"files": 36, "bytes": sum(f.stat().st_size for f in files), "newest_ns": newest}
    assert json.loads(json.dumps(before)) == before == open_zarr(path).identity()
    zarr.open_array(str(path))[0, 0, 0] = 1
    assert open_zarr(path).identity() != before
    shutil.rmtree(path)
    write_array(path, STACK[0], fill_value=9)
    assert open_zarr(path).identity()["metadata_sha256"] != before["metadata_sha256"]


def test_an_array_put_in_its_place_is_noticed(tmp_path):
    path = write_array(tmp_path / "a", STACK[0])
    source = open_zarr(path)
    shutil.rmtree(path)
    with pytest.raises(Failure, match=r"a: box .* could not be read: .*No such file"):
        whole(source)
    write_array(path, STACK[0, ::-1], fill_value=9)
    with pytest.raises(Failure, match=r"a: box .* could not be read: its metadata have changed since it was opened"):
        whole(source)


def _own_volume(path: Path) -> Path:
    create_volume(
        path, shape=(7, 13, 31), channels=3, dtype=np.uint16, voxel_size_um=(2, 1, 1), chunk=(4, 4, 4),
        shard=(8, 8, 8), factors=[],
    )  # fmt: skip
    return path


def test_a_volume_made_by_neurovol_is_a_source_once_it_is_complete(tmp_path):
    path = _own_volume(tmp_path / "v.ome.zarr")
    for given_path in (path, path / "0"):
        with pytest.raises(UserError, match=r"v\.ome\.zarr: is incomplete.*run that stage again"):
            open_zarr(given_path)
    VolumeWriter(str(path)).write(Box.of_shape((7, 13, 31)), STACK)
    finish_volume(path, name="v", attributes={})
    source = open_zarr(path)
    assert source.voxel_size_um == (2, 1, 1)
    np.testing.assert_array_equal(whole(source), STACK)
    (path / "0/c/0/0/0/1").unlink()
    with pytest.raises(UserError, match=r"v\.ome\.zarr/0: 1 of its 8 shards are missing"):
        open_zarr(path)


def _touch(path: Path) -> None:
    path.write_text("")


REFUSED = {
    "nothing": (lambda p: None, "there is no such folder"),
    "a file": (_touch, "is a file, but a Zarr array or image is a folder"),
    "an empty folder": (lambda p: p.mkdir(), r"is no Zarr array or group, for it holds none of zarr\.json, \.zarray"),
    "broken metadata": (
        lambda p: (p.mkdir(), (p / "zarr.json").write_text("{")),
        r"zarr\.json: is no readable Zarr metadata",
    ),
    "metadata of another kind": (
        lambda p: write_json(p / ".zarray", [1]),
        "is no readable Zarr metadata: an object is",
    ),
    "an incomplete array": (lambda p: write_json(p / ".zarray", {"shape": [3]}), "cannot be opened as a Zarr array"),
    "an empty group": (lambda p: zarr.open_group(str(p), mode="w"), "that holds no arrays"),
    "floats": (lambda p: write_array(p, STACK.astype("f4")), "its voxels are float32; uint8 or uint16 is expected"),
    "signed": (lambda p: write_array(p, STACK.astype("i2")), "its voxels are int16"),
    "a picture": (lambda p: write_array(p, STACK[0, 0]), r"is no stack, its shape is \(13, 31\)"),
    "a named picture": (lambda p: write_array(p, STACK[0, 0], dimension_names="yx"), r"is no stack"),
    "no voxels": (lambda p: zarr.create_array(str(p), shape=(0, 7, 9), dtype="u2", chunks=(1, 7, 9)), r"\(0, 7, 9\)"),
    "five axes": (lambda p: write_array(p, STACK[None], chunks=(1, *CHUNKS)), "has 5 axes without names"),
    "channels at the end": (
        lambda p: write_array(p, STACK.transpose(2, 1, 3, 0)),
        r"of the shape \(13, 7, 31, 3\) the first, 13 long, would be the channels; name the axes",
    ),
    "an unknown axis": (lambda p: write_array(p, STACK, dimension_names="azyx"), r"its axes are \(a, z, y, x\)"),
    "an axis twice": (lambda p: write_array(p, STACK, dimension_names="zzyx"), r"its axes are \(z, z, y, x\)"),
    "time points": (lambda p: write_array(p, STACK, dimension_names="tzyx"), "holds 3 time points"),
    "time points of OME": (
        lambda p: write_image(p, STACK[:, None], multiscales(axes("tczyx"), [1] * 5)),
        r"0: holds 3 time points",
    ),
    "OME without axes": (lambda p: write_image(p, STACK, [{"datasets": [{"path": "0"}]}]), "its axes are"),
    "OME without datasets": (
        lambda p: write_image(p, STACK, [{"axes": axes("czyx")}]),
        r"multiscales are not as .*datasets",
    ),
    "a scale of other length": (
        lambda p: write_image(p, STACK, multiscales(axes("czyx"), [1, 1])),
        "multiscales are not as",
    ),
    "a level that is not there": (
        lambda p: write_image(p, STACK, multiscales(axes("czyx"), [1] * 4, path="full")),
        r"a/full: there is no Zarr array, though the image names it",
    ),
    "a level outside": (
        lambda p: write_image(p, STACK, multiscales(axes("czyx"), [1] * 4, path="../b/0")),
        r"a: its finest level, \.\./b/0, lies outside of it",
    ),
    "an empty chunk": (lambda p: _touch(write_array(p) / "c/0/1/2/3"), r"c/0/1/2/3: this chunk's file is empty"),
    "a damaged first chunk": (
        lambda p: (write_array(p) / "c/0/0/0/0").write_bytes(b"spoilt"),
        r"a: box .* could not be read: .*copy or write it again",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_sample_is_refused(tmp_path, what):
    make, said = REFUSED[what]
    make(tmp_path / "a")
    with pytest.raises(UserError, match=said) as caught:
        open_zarr(tmp_path / "a")
    assert str(tmp_path / "a") in str(caught.value)


def test_a_codec_that_nobody_knows_is_refused(tmp_path):
    path = write_array(tmp_path / "a", zarr_format=2)
    about = json.loads((path / ".zarray").read_text())
    write_json(path / ".zarray", about | {"compressor": {"id": "squeeze9"}})
    with pytest.raises(UserError, match=r"a: cannot be opened as a Zarr array: .*squeeze9"):
        open_zarr(path)


@pytest.mark.parametrize("url", ["https://example.org/a.zarr", "s3://bucket/a.zarr"])
def test_an_address_is_refused(tmp_path, url):
    for path in (Path(url), tmp_path / url):
        with pytest.raises(UserError, match="is an address, but only local Zarr is read; copy or mount it"):
            open_zarr(path)
