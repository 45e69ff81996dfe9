"""TIFF stacks, written by tifffile, read back in parts."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neurovol.errors import Failure, UserError
from neurovol.geometry import Box
from neurovol.volume.ifd import read_pages
from neurovol.volume.tiff import natural_key, open_tiff

STACK = np.random.default_rng(0).integers(0, 60000, (11, 37, 53)).astype(np.uint16)
HYPER = np.random.default_rng(1).integers(0, 60000, (7, 2, 13, 31)).astype(np.uint16)  # z, c, y, x

boxes = st.builds(
    lambda *pairs: Box.from_pairs(sorted(p) for p in pairs),
    *(st.tuples(st.integers(0, n), st.integers(0, n)) for n in STACK.shape),
)

WAYS = {
    "contiguous": {},
    "big-endian": {"byteorder": ">"},
    "BigTIFF": {"bigtiff": True},
    "deflate": {"compression": "zlib"},
    "LZW": {"compression": "lzw", "predictor": True},
    "zstd": {"compression": "zstd", "byteorder": ">"},
    "strips": {"compression": "zlib", "rowsperstrip": 5},
    "tiles": {"compression": "zlib", "tile": (16, 16)},
    "plain tiles": {"tile": (16, 32)},
    "ImageJ": {"imagej": True, "metadata": {"axes": "ZYX"}},
    "one directory": {"imagej": True, "metadata": {"axes": "ZYX"}, "truncate": True},  # as ImageJ beyond 4 GiB
    "one directory of tifffile": {"truncate": True},
    "no metadata": {"metadata": None},
    "OME": {"ome": True, "compression": "zlib", "metadata": {"axes": "ZYX"}},
}


def _write_pages(file: Path, stack: np.ndarray, **options) -> None:
    with tifffile.TiffWriter(file) as writer:
        for page in stack:
            writer.write(page, contiguous=False, **options)


def _write_folder(folder: Path, stack: np.ndarray, names: list[str], **options) -> Path:
    folder.mkdir()
    for name, page in zip(names, stack, strict=True):
        tifffile.imwrite(folder / name, page, **options)
    return folder


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(box=boxes)
def test_any_box_is_the_same_crop_of_the_whole(tmp_path, way, box):
    file = tmp_path / "stack.tif"
    if not file.exists():
        tifffile.imwrite(file, STACK, **WAYS[way])
    source = open_tiff(file)
    assert source.shape == (1, *STACK.shape)
    assert source.dtype == np.uint16
    np.testing.assert_array_equal(source.read(box, (0,))[0], STACK[box.slices])


@pytest.mark.parametrize("options", [{}, {"metadata": None}, {"compression": "lzw"}, {"photometric": "miniswhite"}])
def test_pages_appended_one_after_another_are_one_stack(tmp_path, options):
    _write_pages(tmp_path / "s.tif", STACK, **options)
    source = open_tiff(tmp_path / "s.tif")
    np.testing.assert_array_equal(source.read(Box((2, 3, 4), (9, 30, 50)), (0,))[0], STACK[2:9, 3:30, 4:50])


def test_uint8_is_read_as_uint8(tmp_path):
    stack = (STACK >> 8).astype(np.uint8)
    tifffile.imwrite(tmp_path / "s.tif", stack, photometric="minisblack")
    source = open_tiff(tmp_path / "s.tif")
    assert source.dtype == np.uint8
    np.testing.assert_array_equal(source.read(Box.of_shape(STACK.shape), (0,))[0], stack)


def test_stacks_one_voxel_deep_or_high_are_read(tmp_path):
    for shape in [(1, 7, 9), (5, 1, 9), (1, 1, 1)]:
        stack = np.arange(np.prod(shape), dtype=np.uint16).reshape(shape)
        tifffile.imwrite(tmp_path / "s.tif", stack, photometric="minisblack", metadata={"axes": "ZYX"})
        source = open_tiff(tmp_path / "s.tif")
        assert source.shape == (1, *shape)
        np.testing.assert_array_equal(source.read(Box.of_shape(shape), (0,))[0], stack)


def test_imagej_hyperstack_tells_channels_and_voxel_size(tmp_path):
    metadata = {"axes": "ZCYX", "spacing": 2.0, "unit": "um"}
    tifffile.imwrite(tmp_path / "h.tif", HYPER, imagej=True, resolution=(4, 2), metadata=metadata)
    source = open_tiff(tmp_path / "h.tif")
    assert source.shape == (2, 7, 13, 31)
    assert source.voxel_size_um == pytest.approx((2.0, 0.5, 0.25))
    read = source.read(Box((1, 2, 3), (6, 9, 30)), (1, 0))
    np.testing.assert_array_equal(read, HYPER[1:6, ::-1, 2:9, 3:30].swapaxes(0, 1))


def test_imagej_voxel_size_in_nanometres_is_converted(tmp_path):
    metadata = {"axes": "ZYX", "spacing": 500, "unit": "nm"}
    tifffile.imwrite(tmp_path / "h.tif", STACK, imagej=True, resolution=(0.01, 0.01), metadata=metadata)
    assert open_tiff(tmp_path / "h.tif").voxel_size_um == pytest.approx((0.5, 0.1, 0.1))


def test_resolution_without_a_unit_tells_no_voxel_size(tmp_path):
    tifffile.imwrite(tmp_path / "h.tif", STACK, imagej=True, resolution=(72, 72), metadata={"axes": "ZYX"})
    assert open_tiff(tmp_path / "h.tif").voxel_size_um is None
    tifffile.imwrite(tmp_path / "p.tif", STACK, resolution=(300, 300), resolutionunit="INCH")
    assert open_tiff(tmp_path / "p.tif").voxel_size_um is None


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_ome_tiff_tells_channels_and_voxel_size(tmp_path, compression):
    metadata = {"axes": "CZYX", "PhysicalSizeX": 300, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.4}
    metadata |= {"PhysicalSizeZ": 0.002, "PhysicalSizeZUnit": "mm"}
    stack = HYPER.swapaxes(0, 1)
    tifffile.imwrite(tmp_path / "h.ome.tif", stack, metadata=metadata, compression=compression)
    source = open_tiff(tmp_path / "h.ome.tif")
    assert source.shape == stack.shape
    assert source.voxel_size_um == pytest.approx((2.0, 0.4, 0.3))
    np.testing.assert_array_equal(source.read(Box.of_shape(stack.shape[1:]), (0, 1)), stack)


@pytest.mark.parametrize("compression", [None, "lzw"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_the_samples_of_colour_stacks_are_channels(tmp_path, compression, planar):
    stack = np.random.default_rng(2).integers(0, 255, (5, 7, 9, 3)).astype(np.uint8)
    written = stack if planar == "contig" else np.moveaxis(stack, -1, 1)
    options = {"photometric": "rgb", "planarconfig": planar, "compression": compression}
    tifffile.imwrite(tmp_path / "rgb.tif", written, **options)
    source = open_tiff(tmp_path / "rgb.tif")
    assert source.shape == (3, 5, 7, 9)
    np.testing.assert_array_equal(
        source.read(Box((1, 2, 3), (4, 6, 9)), (2, 0)), np.moveaxis(stack[1:4, 2:6, 3:9], -1, 0)[[2, 0]]
    )


@pytest.mark.parametrize("options", [{}, {"compression": "lzw"}])
def test_a_folder_of_slices_is_sorted_naturally(tmp_path, options):
    names = [f"s{i}.tif" for i in range(1, 9)] + ["s9.TIF", "s10.tiff", "S11.tif"]
    folder = _write_folder(tmp_path / "f", STACK, names, **options)
    (folder / ".s3.tif").write_bytes(b"hidden")
    (folder / "notes.txt").write_text("no slice")
    source = open_tiff(folder)
    assert source.shape == (1, *STACK.shape)
    np.testing.assert_array_equal(source.read(Box((1, 5, 6), (11, 30, 40)), (0,))[0], STACK[1:11, 5:30, 6:40])


def test_natural_sorting_puts_2_before_10():
    assert sorted(["s10", "s9a", "S1", "s9", "x"], key=natural_key) == ["S1", "s9", "s9a", "s10", "x"]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["1.tif", "2.tif", "4.tif"], r"f: slice 3 is missing, between 2\.tif and 4\.tif"),
        (["1.tif", "01.tif", "2.tif"], r"f: 01\.tif and 1\.tif have the same number"),
        (["a1.tif", "a2.tif", "b1.tif"], r"f: holds files of 2 series: a1\.tif .*, b1\.tif"),
    ],
)
def test_a_folder_that_is_not_numbered_through_is_refused(tmp_path, names, said):
    folder = _write_folder(tmp_path / "f", STACK[:3], names)
    with pytest.raises(UserError, match=said):
        open_tiff(folder)


def test_a_folder_of_slices_with_channels(tmp_path):
    names = [f"{i:03}.tif" for i in range(len(HYPER))]
    folder = _write_folder(tmp_path / "cyx", HYPER, names, photometric="minisblack", metadata={"axes": "CYX"})
    source = open_tiff(folder)
    assert source.shape == (2, 7, 13, 31)
    np.testing.assert_array_equal(source.read(Box.of_shape(source.shape[1:]), (1,))[0], HYPER[:, 1])


def test_a_folder_of_colour_slices(tmp_path):
    stack = np.random.default_rng(3).integers(0, 255, (4, 7, 9, 3)).astype(np.uint8)
    folder = _write_folder(tmp_path / "yxs", stack, ["a.tif", "b.tif", "c.tif", "d.tif"], photometric="rgb")
    source = open_tiff(folder)
    assert source.shape == (3, 4, 7, 9)
    np.testing.assert_array_equal(source.read(Box.of_shape((4, 7, 9)), (0, 1, 2)), np.moveaxis(stack, -1, 0))


def test_masks_of_one_bit_are_read_where_asked_for(tmp_path):
    mask = STACK > 30000
    tifffile.imwrite(tmp_path / "m.tif", mask)
    source = open_tiff(tmp_path / "m.tif", masks=True)
    assert source.dtype == np.uint8
    np.testing.assert_array_equal(source.read(Box.of_shape(mask.shape), (0,))[0], mask)
    with pytest.raises(UserError, match="bool; uint8 or uint16 is expected"):
        open_tiff(tmp_path / "m.tif")


def test_only_the_strips_a_box_needs_are_decoded(tmp_path):
    file = tmp_path / "s.tif"
    tifffile.imwrite(file, STACK, compression="zlib", rowsperstrip=10)
    pages = read_pages(file)
    with file.open("r+b") as handle:  # spoil the last strip of every page
        for page in pages:
            handle.seek(int(page.offsets[-1]))
            handle.write(b"\xff" * int(page.counts[-1]))
    source = open_tiff(file)
    np.testing.assert_array_equal(source.read(Box((0, 0, 0), (11, 30, 53)), (0,))[0], STACK[:, :30])
    with pytest.raises(Failure, match=r"s\.tif: plane z = 4 could not be read"):
        source.read(Box((4, 30, 0), (5, 31, 53)), (0,))


def test_a_source_is_picklable_and_small(tmp_path):
    names = [f"{i}.tif" for i in range(11)]
    source = open_tiff(_write_folder(tmp_path / "f", STACK, names))
    pickled = pickle.dumps(source)
    assert len(pickled) < 1000
    np.testing.assert_array_equal(pickle.loads(pickled).read(Box.of_shape(STACK.shape), (0,))[0], STACK)


def test_identity_names_files_with_size_and_time(tmp_path):
    names = ["a1.tif", "a2.tif"]
    folder = _write_folder(tmp_path / "f", STACK[:2], names)
    stat = (folder / "a2.tif").stat()
    assert open_tiff(folder).identity() == {
        "kind": "folder of TIFF slices",
        "files": {
            "a1.tif": [(folder / "a1.tif").stat().st_size, (folder / "a1.tif").stat().st_mtime_ns],
            "a2.tif": [stat.st_size, stat.st_mtime_ns],
        },
    }
    assert open_tiff(folder / "a1.tif").identity()["kind"] == "TIFF"


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS.keys())
@pytest.mark.parametrize("share", [0.999, 0.5, 0.01])
def test_a_truncated_file_is_refused_quietly(tmp_path, capfd, options, share):
    file = tmp_path / "s.tif"
    tifffile.imwrite(file, STACK, **options)
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError, match=r"s\.tif: not a readable TIFF: .*truncated"):
        open_tiff(file)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("content", [b"", b"II", b"II*\0", b"not a TIFF at all", b"II*\0\xff\xff\xff\xff"])
def test_what_is_no_tiff_is_refused(tmp_path, content):
    file = tmp_path / "s.tif"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"s\.tif: not a readable TIFF"):
        open_tiff(file)


def test_one_truncated_slice_is_named(tmp_path):
    folder = _write_folder(tmp_path / "f", STACK[:3], ["1.tif", "2.tif", "3.tif"])
    content = (folder / "2.tif").read_bytes()
    (folder / "2.tif").write_bytes(content[:-100])
    with pytest.raises(UserError, match=r"2\.tif: not a readable TIFF: .*truncated"):
        open_tiff(folder)


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        (STACK[0, :36], r"2\.tif: .*36 × 53.*first slice, 1\.tif, has .*37 × 53"),
        ((STACK[0] >> 8).astype(np.uint8), r"2\.tif: .*8 bit unsigned.*16 bit unsigned"),
        (STACK[0].astype(np.int16), r"2\.tif: .*16 bit signed.*16 bit unsigned"),
        (STACK[:2], r"2\.tif: 2 page.*1 page"),
    ],
)
def test_slices_that_differ_are_named_with_both_values(tmp_path, odd, said):
    folder = _write_folder(tmp_path / "f", STACK[:3], ["1.tif", "2.tif", "3.tif"])
    tifffile.imwrite(folder / "2.tif", odd)
    with pytest.raises(UserError, match=said):
        open_tiff(folder)


def test_missing_and_empty_places_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such file or folder"):
        open_tiff(tmp_path / "nothing.tif")
    (tmp_path / "f").mkdir()
    with pytest.raises(UserError, match="the folder holds no TIFF"):
        open_tiff(tmp_path / "f")
    (tmp_path / "f" / "notes.txt").write_text("no slice")
    with pytest.raises(UserError, match="the folder holds no TIFF"):
        open_tiff(tmp_path / "f")


def test_floating_point_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "s.tif", STACK.astype(np.float32))
    with pytest.raises(UserError, match="its voxels are float32; uint8 or uint16"):
        open_tiff(tmp_path / "s.tif")


@pytest.mark.parametrize(
    ("array", "options", "said"),
    [
        (HYPER, {"imagej": True, "metadata": {"axes": "TZYX"}}, r"axes are TZYX \(T = 7, Z = 2\)"),
        (HYPER, {}, r"axes are QQYX"),
        (STACK, {"imagej": True, "metadata": {"axes": "TYX"}}, r"axes are TYX \(T = 11\)"),
        (np.zeros((7, 9, 3), np.uint8), {"photometric": "rgb"}, "a single colour picture of 7 × 9"),
        (STACK, {"imagej": True}, "11 channels of one plane each"),
        (
            np.zeros((2, 7, 9, 3), np.uint8),
            {"photometric": "rgb", "metadata": {"axes": "CYXS"}},
            r"axes are CYXS \(C = 2\)",
        ),
    ],
)
def test_ambiguous_axes_are_refused(tmp_path, array, options, said):
    tifffile.imwrite(tmp_path / "s.tif", array, **options)
    with pytest.raises(UserError, match=said):
        open_tiff(tmp_path / "s.tif")


def test_pages_of_several_sizes_are_refused(tmp_path):
    with tifffile.TiffWriter(tmp_path / "s.tif") as writer:
        writer.write(STACK[0])
        writer.write(STACK[0, :5])
    with pytest.raises(UserError, match=r"holds 2 images of shapes \[\(5, 53\), \(37, 53\)\]"):
        open_tiff(tmp_path / "s.tif")


def _ome_over_two_files(folder: Path) -> None:
    planes = "".join(
        f'<TiffData IFD="0" FirstZ="{z}" PlaneCount="1"><UUID FileName="{z}.ome.tif">urn:uuid:{z}</UUID></TiffData>'
        for z in range(2)
    )
    for z in range(2):
        xml = (
            '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
            f'UUID="urn:uuid:{z}"><Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" '
            'SizeX="53" SizeY="37" SizeZ="2" SizeC="1" SizeT="1" PhysicalSizeX="1" PhysicalSizeY="2" PhysicalSizeZ="3">'
            f'<Channel ID="Channel:0:0"/>{planes}</Pixels></Image></OME>'
        )
        tifffile.imwrite(folder / f"{z}.ome.tif", STACK[z], description=xml, metadata=None)


def test_a_file_whose_planes_lie_in_other_files_is_refused(tmp_path):
    _ome_over_two_files(tmp_path)
    with pytest.raises(UserError, match=r"0\.ome\.tif: .*tell of 2 planes, but it holds 1: .*files of their own"):
        open_tiff(tmp_path / "0.ome.tif")


def test_slices_whose_metadata_name_each_other_are_read_as_a_folder(tmp_path):
    _ome_over_two_files(tmp_path)
    source = open_tiff(tmp_path)
    assert source.voxel_size_um == (3, 2, 1)
    np.testing.assert_array_equal(source.read(Box((0, 0, 0), (2, 37, 53)), (0,))[0], STACK[:2])


def test_a_folder_of_stacks_is_refused(tmp_path):
    folder = _write_folder(tmp_path / "f", STACK[None].repeat(2, 0), ["1.tif", "2.tif"])
    with pytest.raises(UserError, match=r"1\.tif: holds 11 pages, but in a folder each file is one z-slice"):
        open_tiff(folder)


def test_a_file_that_changes_under_way_is_a_failure(tmp_path):
    file = tmp_path / "s.tif"
    tifffile.imwrite(file, STACK)
    source = open_tiff(file)
    with file.open("r+b") as handle:
        handle.truncate(2000)
    with pytest.raises(Failure, match=r"s\.tif: plane z = 3 could not be read: it has changed"):
        source.read(Box((3, 0, 0), (4, 5, 5)), (0,))


def test_a_slice_that_vanishes_is_a_failure(tmp_path):
    folder = _write_folder(tmp_path / "f", STACK[:3], ["1.tif", "2.tif", "3.tif"])
    source = open_tiff(folder)
    (folder / "3.tif").unlink()
    with pytest.raises(Failure, match=r"f/3\.tif: plane z = 2 could not be read|has changed since it was opened"):
        source.read(Box((2, 0, 0), (3, 5, 5)), (0,))
