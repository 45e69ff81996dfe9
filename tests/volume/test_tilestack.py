"""Tiles as TIFF files, folders of TIFFs and zips of pictures, read back in parts."""

import io
import os
import pickle
import zipfile

import imagecodecs
import numpy as np
import pytest
import tifffile

from neurovol.errors import Failure, UserError
from neurovol.geometry import Box
from neurovol.volume.tiff import TiffSource
from neurovol.volume.tilestack import ZipStack, files_of, open_stack

STACK = np.random.default_rng(0).integers(0, 60000, (11, 37, 53)).astype(np.uint16)
COLOUR = np.random.default_rng(1).integers(0, 255, (5, 13, 31, 3)).astype(np.uint8)  # z, y, x, c
BOX = Box((2, 3, 5), (9, 30, 41))


def tiff_bytes(plane, **options):
    held = io.BytesIO()
    tifffile.imwrite(held, plane, **options)
    return held.getvalue()


def jp2(plane):
    return imagecodecs.jpeg2k_encode(plane, level=0, reversible=True, codecformat="jp2")


PICTURES = {
    "png": imagecodecs.png_encode,
    "tif": tiff_bytes,
    "TIFF": lambda plane: tiff_bytes(plane, compression="zlib", byteorder=">"),
    "jp2": jp2,
}


def write_zip(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def zip_of(path, stack, kind="png", compression=zipfile.ZIP_STORED):
    return write_zip(path, {f"s{z + 1}.{kind}": PICTURES[kind](p) for z, p in enumerate(stack)}, compression)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("kind", PICTURES)
def test_a_zip_of_pictures_is_a_stack_in_natural_order(tmp_path, kind, compression):
    stack = open_stack(zip_of(tmp_path / "t.zip", STACK, kind, compression))
    assert stack.shape == (1, *STACK.shape)
    assert stack.dtype == np.uint16
    assert stack.grain == (1, 37, 53)
    np.testing.assert_array_equal(stack.read(BOX, (0,))[0], STACK[BOX.slices])


@pytest.mark.parametrize("kind", PICTURES)
def test_colour_pictures_are_channels(tmp_path, kind):
    stack = open_stack(zip_of(tmp_path / "t.zip", COLOUR, kind))
    assert stack.shape == (3, 5, 13, 31)
    out = np.zeros((2, 2, 5, 5), np.uint8)
    assert stack.read(Box((1, 2, 3), (3, 7, 8)), (2, 0), out) is out
    np.testing.assert_array_equal(out, np.moveaxis(COLOUR[1:3, 2:7, 3:8], -1, 0)[[2, 0]])


def test_planar_colour_tiffs_in_a_zip_are_channels(tmp_path):
    planes = {f"{z}.tif": tiff_bytes(np.moveaxis(p, -1, 0), photometric="rgb") for z, p in enumerate(COLOUR)}
    stack = open_stack(write_zip(tmp_path / "t.zip", planes))
    np.testing.assert_array_equal(stack.read(Box.of_shape((5, 13, 31)), (0, 1, 2)), np.moveaxis(COLOUR, -1, 0))


def test_hidden_files_and_notes_in_a_zip_are_no_slices(tmp_path):
    members = {f"a/{z}.png": imagecodecs.png_encode(p) for z, p in enumerate(STACK)}
    members |= {"a/notes.txt": b"", "__MACOSX/a/._0.png": b"", "a/.1.png": b"", "a/": b""}
    assert open_stack(write_zip(tmp_path / "t.zip", members)).shape == (1, *STACK.shape)


@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_of_an_uncompressed_file_any_voxel_is_read_by_itself(tmp_path, byteorder):
    tifffile.imwrite(tmp_path / "t.tif", STACK, byteorder=byteorder)
    stack = open_stack(tmp_path / "t.tif")
    assert stack.grain == (1, 1, 1)
    read = stack.read(BOX, (0,))
    assert read.dtype == np.uint16
    np.testing.assert_array_equal(read[0], STACK[BOX.slices])


@pytest.mark.parametrize("options", [
    {"photometric": "rgb"},
    {"photometric": "rgb", "planarconfig": "separate"},
    {"photometric": "minisblack", "imagej": True, "metadata": {"axes": "ZCYX"}},
])  # fmt: skip
def test_channels_of_uncompressed_files_are_read_however_they_lie(tmp_path, options):
    written = COLOUR if options == {"photometric": "rgb"} else np.moveaxis(COLOUR, -1, 1)
    tifffile.imwrite(tmp_path / "t.tif", written, **options)
    stack = open_stack(tmp_path / "t.tif")
    box = Box((1, 2, 3), (4, 9, 30))
    np.testing.assert_array_equal(stack.read(box, (2, 0)), np.moveaxis(COLOUR, -1, 0)[[2, 0]][:, *box.slices])


def test_files_of_uneven_or_compressed_pages_are_read_page_by_page(tmp_path):
    with tifffile.TiffWriter(tmp_path / "uneven.tif") as writer:
        for z, plane in enumerate(STACK):
            writer.write(plane, contiguous=False, description="." * 100 * z)
    tifffile.imwrite(tmp_path / "packed.tif", STACK, compression="zlib")
    for name in ("uneven.tif", "packed.tif"):
        stack = open_stack(tmp_path / name)
        assert isinstance(stack, TiffSource)
        np.testing.assert_array_equal(stack.read(BOX, (0,))[0], STACK[BOX.slices])


@pytest.mark.parametrize("depth", [1, 4])
def test_a_folder_of_tiffs_is_a_stack(tmp_path, depth):
    (tmp_path / "12.5_30.2").mkdir()
    for z in range(depth):
        tifffile.imwrite(tmp_path / "12.5_30.2" / f"{z}.tif", STACK[z])
    stack = open_stack(tmp_path / "12.5_30.2")
    np.testing.assert_array_equal(stack.read(Box.of_shape((depth, 37, 53)), (0,))[0], STACK[:depth])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("t.dcimg", r"t\.dcimg: is a DCIMG file .*\(\.dcimg\), which is not read; tiles may be TIFF files, folders"),
        ("t.mhd", r"is a MetaImage \(\.mhd\)"),
        ("t.MKV", r"is a video \(\.mkv\)"),
        ("t.png", r"is a file of kind \.png, which is not read; tiles may be"),
        ("tile", r"is a file of kind unknown"),
    ],
)
def test_other_kinds_are_refused_by_name(tmp_path, name, said):
    (tmp_path / name).write_bytes(b"data")
    with pytest.raises(UserError, match=said):
        open_stack(tmp_path / name)


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({}, r"t\.zip: the zip holds no PNG, TIFF or JPEG 2000 slice, but nothing"),
        ({"a.jpg": b"x", "b.jpg": b"x", "c": b"x"}, r"but 2 \.jpg, 1 without an extension; tiles may be"),
        ({"a.png": b"no picture"}, r"its slice a\.png cannot be decoded: .*; zip it again"),
        ({"a.png": b""}, r"its slice a\.png cannot be decoded"),
        ({"a.tif": tiff_bytes(STACK[:2])}, r"a\.tif cannot be decoded: it holds 2 pages"),
        ({"a.tif": tiff_bytes(STACK[0].astype(np.float32))}, r"its voxels are float32; uint8 or uint16 is expected"),
    ],
)
def test_zips_that_hold_no_stack_are_refused(tmp_path, members, said):
    with pytest.raises(UserError, match=said):
        open_stack(write_zip(tmp_path / "t.zip", members))


def test_a_truncated_zip_is_refused(tmp_path):
    file = zip_of(tmp_path / "t.zip", STACK)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"t\.zip: not a readable zip: .*truncated"):
        open_stack(file)


@pytest.mark.parametrize(
    ("where", "damaged"), [("é".encode(), b"\xc3\xff"), (b"PK\x01\x02\x14\x03\x14", b"PK\x01\x02\x14\x03\xff")]
)
def test_a_zip_whose_directory_is_damaged_is_refused(tmp_path, where, damaged):
    file = write_zip(tmp_path / "t.zip", {f"é{z}.png": PICTURES["png"](p) for z, p in enumerate(STACK)})
    before = file.read_bytes()
    assert where in before
    file.write_bytes(before.replace(where, damaged))
    with pytest.raises(UserError, match=r"t\.zip: not a readable zip: .*damaged"):
        open_stack(file)


def test_a_zip_packed_by_another_method_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"s1\.png is encrypted, or packed by method 14"):
        open_stack(zip_of(tmp_path / "t.zip", STACK, compression=zipfile.ZIP_LZMA))


def test_a_damaged_slice_of_a_zip_is_a_failure_that_names_it(tmp_path):
    file = zip_of(tmp_path / "t.zip", STACK)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)
    with pytest.raises(Failure, match=r"t\.zip: plane z = \d could not be read: s\d\.png in it is damaged"):
        open_stack(file).read(Box.of_shape(STACK.shape), (0,))


def test_a_slice_of_another_size_is_a_failure_with_both_values(tmp_path):
    planes = [STACK[0], STACK[1], STACK[2, :36]]
    with pytest.raises(Failure, match=r"z = 2 could not be read: s3\.png is \(1, 36, 53\).*first slice \(1, 37, 53\)"):
        open_stack(zip_of(tmp_path / "t.zip", planes)).read(Box((0, 0, 0), (3, 5, 5)), (0,))


@pytest.mark.parametrize("name", ["t.zip", "t.tif"])
def test_a_stack_that_changed_since_is_a_failure(tmp_path, name):
    file = tmp_path / name
    if name == "t.zip":
        zip_of(file, STACK)
    else:
        tifffile.imwrite(file, STACK)
    stack = pickle.loads(pickle.dumps(open_stack(file)))
    stack.read(BOX, (0,))
    os.utime(file, ns=(1, 1))
    with pytest.raises(Failure, match=r"plane z = 2 could not be read: it has changed since it was opened"):
        stack.read(BOX, (0,))


def test_a_zip_is_picklable_and_small(tmp_path):
    stack = open_stack(zip_of(tmp_path / "t.zip", STACK))
    assert isinstance(stack, ZipStack)
    assert len(pickle.dumps(stack)) < 1000


def test_files_of_a_tile_are_summed_up_and_none_where_it_is_missing(tmp_path):
    assert files_of(tmp_path / "t.tif") is None
    tifffile.imwrite(tmp_path / "t.tif", STACK)
    assert files_of(tmp_path / "t.tif" / "inner.tif") is None
    before = files_of(tmp_path / "t.tif")
    assert (before.n, before.size_bytes) == (1, (tmp_path / "t.tif").stat().st_size)
    os.utime(tmp_path / "t.tif", ns=(1, 1))
    assert files_of(tmp_path / "t.tif") != before
