"""ZetaStitcher projects, written tile by tile with known truth, read as one volume."""

import logging
import os
import pickle
import shutil
import zipfile

import imagecodecs
import numpy as np
import pytest
import tifffile
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neurovol.errors import Failure, UserError
from neurovol.geometry import Box
from neurovol.volume.zetastitcher import open_zetastitcher

TRUTH = np.random.default_rng(0).integers(0, 60000, (2, 14, 61, 83)).astype(np.uint16)  # c, z, y, x
SIZE = (11, 37, 33)
JITTERED = [(0, 0, 1), (2, 1, 25), (1, 0, 49), (3, 23, 0), (0, 22, 27), (2, 24, 50)]  # 2 × 3 tiles
NAMES = [f"{x}_{y}.tif" for y in (0, 30) for x in (0, 25, 50)]


def cut(corner, size=SIZE):
    return TRUTH[:, *Box.of_shape(size).shifted(corner).slices]


def row(name, corner, size=SIZE, **changes):
    told = dict(zip(("Zs", "Ys", "Xs"), corner, strict=True)) | dict(
        zip(("nfrms", "ysize", "xsize"), size, strict=True)
    )
    return {"X": 0.5, "Y": 0.25, "Z": 0, "filename": name, **told, **changes}


def write_tile(path, array):
    """(c, z, y, x) as an ImageJ hyperstack; z and c as Fiji saves them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, array.swapaxes(0, 1), imagej=True, metadata={"axes": "ZCYX"})


def write_yml(folder, rows, **others):
    (folder / "stitch.yml").write_text(yaml.safe_dump({"filematrix": rows, "xcorr": [], **others}))
    return folder


def project(folder, shift=(0, 0, 0), noise=True):
    """Tiles of two channels; with noise they differ where they overlap."""
    rows = []
    for i, (name, corner) in enumerate(zip(NAMES, JITTERED, strict=True)):
        tile = cut(corner) + (np.random.default_rng(i).integers(0, 3000, (2, *SIZE)).astype(np.uint16) if noise else 0)
        write_tile(folder / name, tile)
        rows.append(row(name, [c + s for c, s in zip(corner, shift, strict=True)]))
    return write_yml(folder, rows)


def held_by(corners, size=SIZE):
    """(z, y, x): how many tiles hold a voxel."""
    count = np.zeros(TRUTH.shape[1:], int)
    for corner in corners:
        count[Box.of_shape(size).shifted(corner).slices] += 1
    return count


WHOLE = Box.of_shape(TRUTH.shape[1:])
boxes = st.builds(
    lambda *pairs: Box.from_pairs(sorted(p) for p in pairs),
    *(st.tuples(st.integers(0, n), st.integers(0, n)) for n in WHOLE.shape),
)


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    source = open_zetastitcher(project(tmp_path_factory.mktemp("noisy")))
    return source, source.read(WHOLE, (0, 1))


@settings(max_examples=60, deadline=None)
@given(box=boxes, channels=st.sampled_from([(0,), (1, 0), (1,)]))
def test_any_box_is_the_same_crop_of_the_whole(noisy, box, channels):
    source, whole = noisy
    assert source.shape == TRUTH.shape
    assert source.dtype == np.uint16
    np.testing.assert_array_equal(source.read(box, channels), whole[list(channels)][:, *box.slices])


def test_what_one_tile_holds_is_exactly_that_tile_and_what_none_holds_is_0(noisy):
    _, whole = noisy
    count = held_by(JITTERED)
    assert {0, 1, 2, 4} <= set(np.unique(count))
    assert (whole[:, count == 0] == 0).all()
    for i, corner in enumerate(JITTERED):
        box = Box.of_shape(SIZE).shifted(corner)
        alone = count[box.slices] == 1
        tile = cut(corner) + np.random.default_rng(i).integers(0, 3000, (2, *SIZE)).astype(np.uint16)
        np.testing.assert_array_equal(whole[:, *box.slices][:, alone], tile[:, alone])


def test_an_overlap_lies_between_the_tiles_that_make_it(noisy):
    _, whole = noisy
    several = held_by(JITTERED) > 1
    excess = whole[:, several].astype(int) - TRUTH[:, several]
    assert excess.min() >= 0
    assert excess.max() < 3000
    assert 1400 < excess.mean() < 1600


def test_tiles_that_agree_give_the_truth(tmp_path):
    source = open_zetastitcher(project(tmp_path, noise=False))
    np.testing.assert_array_equal(source.read(WHOLE, (0, 1)), np.where(held_by(JITTERED) > 0, TRUTH, 0))


def test_positions_may_be_negative_and_whole_floats(tmp_path, noisy):
    source = open_zetastitcher(project(tmp_path, shift=(-5.0, -70.0, -1000.0)))
    np.testing.assert_array_equal(source.read(WHOLE, (0, 1)), noisy[1])


def test_a_box_is_written_where_it_is_wanted(noisy):
    source, whole = noisy
    out = np.zeros((1, 5, 20, 40), np.uint16)
    box = Box((3, 20, 20), (8, 40, 60))
    assert source.read(box, (1,), out) is out
    np.testing.assert_array_equal(out, whole[1:, *box.slices])


def test_a_box_is_written_into_a_part_of_a_larger_array(noisy):
    source, whole = noisy
    out = np.full((2, 14, 70, 90), 7, np.uint16)
    box = Box((3, 10, 20), (8, 50, 60))
    source.read(box, (1, 0), out[:, 2:7, 9:49, 3:43])
    np.testing.assert_array_equal(out[:, 2:7, 9:49, 3:43], whole[[1, 0]][:, *box.slices])
    out[:, 2:7, 9:49, 3:43] = 7
    assert (out == 7).all()


def write_folder(path, tile):
    path.mkdir(parents=True)
    for z, plane in enumerate(tile[0]):
        tifffile.imwrite(path / f"slice_{z}.tif", plane, compression="zlib")


def write_zip(path, tile, kind):
    encode = {
        "png": imagecodecs.png_encode,
        "jp2": lambda p: imagecodecs.jpeg2k_encode(p, level=0, reversible=True, codecformat="jp2"),
    }[kind]
    with zipfile.ZipFile(path, "w") as archive:
        for z, plane in enumerate(tile[0]):
            archive.writestr(f"{z}.{kind}", encode(plane))


def test_tiles_may_be_files_folders_and_zips_in_folders_and_with_windows_separators(tmp_path):
    names = ["0_0.tif", "x_25..y_0", "raw\\50.5_0.zip", "raw/x_0..y_30/stack", "x25y30.ZIP", "raw\\50_30.tif"]
    (tmp_path / "raw").mkdir()
    for name, corner in zip(names, JITTERED, strict=True):
        path, tile = tmp_path / name.replace("\\", "/"), cut(corner)[:1]
        if path.suffix == ".tif":
            write_tile(path, tile)
        elif path.suffix.lower() == ".zip":
            write_zip(path, tile, "jp2" if path.suffix == ".ZIP" else "png")
        else:
            write_folder(path, tile)
    write_yml(tmp_path, [row(n, c) for n, c in zip(names, JITTERED, strict=True)])
    source = open_zetastitcher(tmp_path / "stitch.yml")
    assert source.shape == (1, *TRUTH.shape[1:])
    np.testing.assert_array_equal(source.read(WHOLE, (0,)), np.where(held_by(JITTERED) > 0, TRUTH[:1], 0))


def test_grain_is_that_of_the_tiles(tmp_path, noisy):
    assert noisy[0].grain == (1, 1, 1)
    write_zip(tmp_path / "a.zip", cut((0, 0, 0)), "png")
    assert open_zetastitcher(write_yml(tmp_path, [row("a.zip", (0, 0, 0))])).grain == (1, 37, 33)


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"px_size_z": 2, "px_size_xy": 0.65}, (2.0, 0.65, 0.65)),
        ({"px_size_z": 1, "px_size_xy": 1}, None),  # ZetaStitcher writes 1 for what it was not told
        ({"px_size_z": 1, "px_size_xy": 0.5}, (1.0, 0.5, 0.5)),
        ({"px_size_z": 0, "px_size_xy": 0.65}, None),
        ({"px_size_xy": 0.65}, None),
        (None, None),
    ],
)
def test_the_voxel_size_is_that_of_the_xcorr_options(tmp_path, options, size):
    write_tile(tmp_path / "a.tif", cut((0, 0, 0)))
    write_yml(tmp_path, [row("a.tif", (0, 0, 0))], **{"xcorr-options": options})
    assert open_zetastitcher(tmp_path).voxel_size_um == size


def test_missing_tiles_are_zeros_and_one_warning_counts_them(tmp_path, caplog, noisy):
    project(tmp_path)
    (tmp_path / NAMES[1]).unlink()
    (tmp_path / NAMES[5]).unlink()
    with caplog.at_level(logging.WARNING):
        source = open_zetastitcher(tmp_path)
        read = source.read(WHOLE, (0, 1))
    assert [r.getMessage() for r in caplog.records] == [
        f"{tmp_path}/stitch.yml: 2 of 6 tiles are missing, zeros stand in their place: {NAMES[1]}, {NAMES[5]}"
    ]
    there = held_by([JITTERED[i] for i in (0, 2, 3, 4)])
    gone = held_by([JITTERED[i] for i in (1, 5)])
    assert (read[:, there == 0] == 0).all()
    np.testing.assert_array_equal(read[:, gone == 0], noisy[1][:, gone == 0])  # elsewhere nothing is changed
    assert source.identity()["missing"] == [NAMES[1], NAMES[5]]


def test_a_project_without_any_tile_is_refused(tmp_path):
    write_yml(tmp_path, [row("a.tif", (0, 0, 0)), row("b", (0, 0, 9))])
    with pytest.raises(UserError, match=r"stitch\.yml: none of its 2 tiles is there \(a\.tif, b\)"):
        open_zetastitcher(tmp_path)


def test_identity_tells_of_every_file_and_changes_with_it(tmp_path):
    source = open_zetastitcher(project(tmp_path))
    told = source.identity()
    assert told["kind"] == "ZetaStitcher project"
    assert list(told["files"]) == ["stitch.yml", *NAMES]
    assert told["missing"] == []
    assert pickle.loads(pickle.dumps(source)).identity() == told
    os.utime(tmp_path / NAMES[2], ns=(1, 1))
    assert open_zetastitcher(tmp_path).identity() != told
    with pytest.raises(Failure, match=r"50_0\.tif: has changed since the project was opened"):
        source.identity()


def test_a_source_is_picklable_and_carries_no_tiles(noisy):
    source, whole = noisy
    pickled = pickle.dumps(source)
    assert len(pickled) < 1000
    np.testing.assert_array_equal(pickle.loads(pickled).read(WHOLE, (0, 1)), whole)


def test_opening_opens_one_tile_and_the_others_on_need(tmp_path):
    project(tmp_path)
    (tmp_path / NAMES[5]).write_bytes(b"no TIFF")
    source = open_zetastitcher(tmp_path)
    source.read(Box((0, 0, 0), (14, 20, 50)), (0,))
    with pytest.raises(Failure, match=r"50_30\.tif: not a readable TIFF.*\(needed for its planes z = 2 to 5\)"):
        source.read(Box((4, 30, 50), (8, 61, 83)), (0,))


@pytest.mark.parametrize("name", [NAMES[4], "stitch.yml"])
@pytest.mark.parametrize("read_before", [True, False])
def test_what_changed_since_is_a_failure(tmp_path, name, read_before):
    source = open_zetastitcher(project(tmp_path))
    if read_before and name != "stitch.yml":  # the yml is read once per process
        source.read(WHOLE, (0,))
    os.utime(tmp_path / name, ns=(1, 1))
    with pytest.raises(Failure, match=rf"{name}: .*has changed since"):
        source.read(WHOLE, (0,))


@pytest.mark.parametrize("way", ["slice gone", "tile gone"])
def test_what_vanished_since_is_a_failure(tmp_path, way):
    write_folder(tmp_path / "a", cut((0, 0, 0)))
    write_folder(tmp_path / "b", cut((0, 0, 20)))
    source = open_zetastitcher(write_yml(tmp_path, [row("a", (0, 0, 0)), row("b", (0, 0, 20))]))
    if way == "slice gone":
        (tmp_path / "b" / "slice_3.tif").unlink()
    else:
        shutil.rmtree(tmp_path / "b")
    with pytest.raises(Failure, match=r"/b: has changed since the project was opened"):
        source.read(Box((0, 0, 0), (1, 1, 40)), (0,))


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (cut((0, 0, 0))[:1], r"b\.tif: has 1 channel\(s\) of uint16, but the first tile 2 of uint16"),
        (cut((0, 0, 0)).astype(np.uint8), r"b\.tif: has 2 channel\(s\) of uint8, but the first tile 2 of uint16"),
        (cut((0, 0, 0))[:, :10], r"b\.tif: has \(10, 37, 33\) voxels, but by the yml \(11, 37, 33\) \(nfrms, ysize"),
    ],
)
def test_tiles_that_disagree_are_named_with_both_values(tmp_path, array, said):
    write_tile(tmp_path / "a.tif", cut((0, 0, 0)))
    write_tile(tmp_path / "b.tif", array)
    source = open_zetastitcher(write_yml(tmp_path, [row("a.tif", (0, 0, 0)), row("b.tif", (0, 0, 20))]))
    with pytest.raises(Failure, match=said + r".*z = 0 to 0"):
        source.read(Box((0, 0, 0), (1, 1, 40)), (0,))


def test_a_first_tile_of_another_size_is_refused(tmp_path):
    write_tile(tmp_path / "a.tif", cut((0, 0, 0)))
    with pytest.raises(UserError, match=r"a\.tif: has \(11, 37, 33\) voxels, but by the yml \(11, 36, 33\)"):
        open_zetastitcher(write_yml(tmp_path, [row("a.tif", (0, 0, 0), ysize=36)]))


def test_tiles_that_stat_alone_shows_to_be_wrong_are_refused(tmp_path):
    write_folder(tmp_path / "a", cut((0, 0, 0)))
    (tmp_path / "a" / "slice_10.tif").unlink()
    write_yml(tmp_path, [row("a", (0, 0, 0))])
    with pytest.raises(UserError, match=r"/a: the folder holds 10 TIFFs, but by the yml .* 11 slices \(nfrms\)"):
        open_zetastitcher(tmp_path)
    (tmp_path / "b.tif").touch()
    write_yml(tmp_path, [row("b.tif", (0, 0, 0))])
    with pytest.raises(UserError, match=r"b\.tif: is empty; copy it again"):
        open_zetastitcher(tmp_path)


@pytest.mark.parametrize(("kind", "said"), [("dcimg", "a DCIMG"), ("mhd", "a MetaImage"), ("avi", "a video")])
@pytest.mark.parametrize("there", [True, False])
def test_tiles_of_other_kinds_are_refused_by_name(tmp_path, kind, said, there):
    write_tile(tmp_path / "a.tif", cut((0, 0, 0)))
    if there:
        (tmp_path / f"b.{kind}").write_bytes(b"data")
    write_yml(tmp_path, [row("a.tif", (0, 0, 0)), row(f"b.{kind}", (0, 0, 20))])
    with pytest.raises(UserError, match=rf"b\.{kind}: is {said}.*not read; tiles may be TIFF files, folders"):
        open_zetastitcher(tmp_path)


@pytest.mark.parametrize("name", ["../a.tif", "x/../../a.tif", "/data/a.tif", "E:\\data\\a.tif", "..\\a.tif", "."])
def test_tiles_outside_the_project_are_refused(tmp_path, name):
    with pytest.raises(UserError, match=r"stitch\.yml: its tile .* lies outside the project's folder; .*correct"):
        open_zetastitcher(write_yml(tmp_path, [row(name, (0, 0, 0))]))


@pytest.mark.parametrize("key", ["Xs", "Ys", "Zs"])
@pytest.mark.parametrize("value", [None, float("nan")])
def test_without_absolute_positions_a_project_is_to_be_stitched_first(tmp_path, key, value):
    said = rf"stitch\.yml: its tile a\.tif has no {key}: absolute positions are missing; stitch it first: stitch-fuse"
    with pytest.raises(UserError, match=said):
        open_zetastitcher(write_yml(tmp_path, [row("a.tif", (0, 0, 0), **{key: value})]))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"xsize": 0}, r"its tile a\.tif has xsize = 0; 1 or more is expected"),
        ({"nfrms": None}, r"its tile a\.tif has nfrms = None; a number of voxels is expected"),
        ({"Xs": "far"}, r"its tile a\.tif has Xs = far; a number"),
        ({"Ys": float("inf")}, r"has Ys = inf; a number"),
        ({"Ys": 10**30}, r"has Ys = 10+; a number"),
        ({"Zs": True}, r"has Zs = True; a number"),
        ({"filename": None}, r"a tile of its filematrix has no `filename`"),
        ({"filename": 7}, r"a tile of its filematrix has no `filename`"),
        ({"filename": "a\0.tif"}, r"a tile of its filematrix has no `filename`"),
    ],
)
def test_entries_that_make_no_sense_are_named_with_their_value(tmp_path, changes, said):
    with pytest.raises(UserError, match=said):
        open_zetastitcher(write_yml(tmp_path, [row("a.tif", (0, 0, 0), **changes)]))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1,\nb: {", r"stitch\.yml: not plain YAML: line 2: .*; give a ZetaStitcher"),
        ("a: !!python/object/apply:os.system ['true']", r"not plain YAML: line 1: could not determine a constructor"),
        ("\x01", r"not plain YAML"),
        ("a: 2020-99-99", r"not plain YAML"),
        ("", r"has no list of tiles, `filematrix`; give the stitch\.yml that stitch-align has written"),
        ("- 1", "has no list of tiles"),
        ("filematrix: []", "has no list of tiles"),
        ("filematrix: [1]", "has no list of tiles"),
    ],
)
def test_what_is_no_stitch_yml_is_refused(tmp_path, text, said):
    (tmp_path / "stitch.yml").write_text(text)
    with pytest.raises(UserError, match=said):
        open_zetastitcher(tmp_path)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "stitch.yml").write_bytes(b"\xff\x00\x81")
    with pytest.raises(UserError, match="not plain YAML"):
        open_zetastitcher(tmp_path)


def test_a_place_without_a_yml_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"stitch\.yml: there is no such file; give a ZetaStitcher project's folder"):
        open_zetastitcher(tmp_path)
    with pytest.raises(UserError, match=r"other\.yml: there is no such file"):
        open_zetastitcher(tmp_path / "other.yml")


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(corners=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 24), st.integers(0, 50)), min_size=1, max_size=6))
def test_tiles_anywhere_give_the_truth_where_they_are_and_0_elsewhere(tmp_path, corners):
    names = [f"{z}_{y}_{x}.tif" for z, y, x in corners]
    for name, corner in zip(names, corners, strict=True):
        write_tile(tmp_path / name, cut(corner))
    source = open_zetastitcher(write_yml(tmp_path, [row(n, c) for n, c in zip(names, corners, strict=True)]))
    least = np.min(corners, axis=0)
    wanted = np.where(held_by(corners) > 0, TRUTH, 0)[:, least[0] :, least[1] :, least[2] :]
    whole = Box.of_shape(source.shape[1:])
    np.testing.assert_array_equal(source.read(whole, (0, 1)), wanted[:, *whole.slices])
