"""ImageJ ROI sets, written by roifile, read as masks and instances."""

import pickle
import zipfile
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from roifile import ROI_OPTIONS, ROI_SUBTYPE, ROI_TYPE, ImagejRoi, roiwrite

from neurovol.errors import Failure, UserError
from neurovol.geometry import Box
from neurovol.volume.roi import inside, open_roi_set

BOX = (5, 11, 13)
WHOLE = Box.of_shape(BOX)
TRIANGLE = [[1, 1], [7, 1], [1, 7]]


def polygon(points=TRIANGLE, z: int | None = 2, kind: ROI_TYPE = ROI_TYPE.POLYGON, **given) -> ImagejRoi:
    """Drawn on plane z, from 0."""
    roi = ImagejRoi.frompoints(points, position=z, name=given.pop("name", "cell"))
    roi.roitype = kind
    for name, value in given.items():
        setattr(roi, name, value)
    return roi


def box_roi(kind: ROI_TYPE, left, top, right, bottom, z: int = 2, **given) -> ImagejRoi:
    roi = ImagejRoi(roitype=kind, left=left, top=top, right=right, bottom=bottom, position=z + 1, name="box")
    for name, value in given.items():
        setattr(roi, name, value)
    return roi


def save(folder: Path, *rois: ImagejRoi) -> Path:
    roiwrite(folder / "set.zip", rois, name=[f"{i}" for i in range(len(rois))], mode="w")
    return folder / "set.zip"


def plane(path: Path, z: int = 2) -> np.ndarray:
    return open_roi_set(path, BOX).read(WHOLE, (0,))[0, z]


def is_inside(ring, row: int, column: int) -> bool:
    """One pixel, in exact arithmetic: whether an odd number of edges lies to the left of its centre."""
    x, y = Fraction(2 * column + 1, 2), Fraction(2 * row + 1, 2)
    count = 0
    for (x0, y0), (x1, y1) in pairwise([*ring, ring[0]]):
        if min(y0, y1) < y <= max(y0, y1):
            count += x0 + (y - y0) * (x1 - x0) / (y1 - y0) < x
    return count % 2 == 1


quarters = st.integers(-12, 60).map(lambda n: Fraction(n, 4))
corners = st.lists(st.tuples(quarters, quarters), min_size=3, max_size=9)


@given(st.lists(corners, min_size=1, max_size=2), st.tuples(st.integers(0, 9), st.integers(0, 11)))
def test_a_pixel_is_inside_if_its_centre_is_by_the_even_odd_rule(rings, corner):
    box = Box((0, *corner), (1, *BOX[1:]))
    found = inside(tuple(np.array(ring, np.float64) for ring in rings), box)
    for row, column in np.ndindex(found.shape):
        wanted = sum(is_inside(ring, row + corner[0], column + corner[1]) for ring in rings) % 2 == 1
        assert found[row, column] == wanted


@given(st.tuples(*(st.tuples(st.integers(0, n), st.integers(0, n)) for n in BOX)))
def test_any_box_is_the_same_crop_of_the_whole(tmp_path_factory, pairs):
    path = save(tmp_path_factory.mktemp("set"), polygon(), polygon([[3, 2], [12, 9], [2, 10]], name="b"))
    roi_set = open_roi_set(path, BOX)
    box = Box.from_pairs(sorted(p) for p in pairs)
    np.testing.assert_array_equal(roi_set.read_instances(box), roi_set.read_instances(WHOLE)[box.slices])
    np.testing.assert_array_equal(roi_set.read(box, (0,))[0], roi_set.read_instances(box) > 0)


def test_a_triangle_is_the_mask_that_imagej_shows(tmp_path):
    # centres on the slanted right side count as inside
    assert plane(save(tmp_path, polygon()))[:8, :8].tolist() == [
        [0, 0, 0, 0, 0, 0, 0, 0],
        [0, 1, 1, 1, 1, 1, 1, 0],
        [0, 1, 1, 1, 1, 1, 0, 0],
        [0, 1, 1, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0],
    ]


def test_it_lies_on_its_slice_alone(tmp_path):
    read = open_roi_set(save(tmp_path, polygon(z=3)), BOX).read(WHOLE, (0,))[0]
    assert read.any(axis=(1, 2)).tolist() == [False, False, False, True, False]


def test_the_slice_of_a_hyperstack_wins_over_the_position(tmp_path):
    roi = polygon(z=None, c_position=2, z_position=5, position=0, t_position=1)
    assert list(open_roi_set(save(tmp_path, roi), BOX).slices) == [4]


@pytest.mark.parametrize("kind", [ROI_TYPE.POLYGON, ROI_TYPE.FREEHAND, ROI_TYPE.TRACED])
def test_outlines_of_every_tool_are_read_alike(tmp_path, kind):
    np.testing.assert_array_equal(plane(save(tmp_path, polygon(kind=kind))).sum(), 21)


def test_sub_pixel_corners_count(tmp_path):
    assert plane(save(tmp_path, polygon([[1.4, 1.0], [3.4, 1.0], [3.4, 3.0], [1.4, 3.0]]))).nonzero()[1].max() == 2
    assert plane(save(tmp_path, polygon([[1.6, 1.0], [3.6, 1.0], [3.6, 3.0], [1.6, 3.0]]))).nonzero()[1].max() == 3


def test_rectangles_are_their_pixels(tmp_path):
    wanted = np.zeros(BOX[1:], int)
    wanted[3:8, 2:6] = 1
    np.testing.assert_array_equal(plane(save(tmp_path, box_roi(ROI_TYPE.RECT, 2, 3, 6, 8))), wanted)
    sub_pixel = {
        "version": 228,
        "options": ROI_OPTIONS.SUB_PIXEL_RESOLUTION,
        "xd": 1.6,
        "yd": 3.3,
        "widthd": 4.2,
        "heightd": 5.1,
    }
    np.testing.assert_array_equal(plane(save(tmp_path, box_roi(ROI_TYPE.RECT, 1, 3, 6, 9, **sub_pixel))), wanted)


@pytest.mark.parametrize(
    ("left", "top", "right", "bottom"), [(2, 1, 9, 8), (0, 0, 10, 10), (3, 2, 12, 7), (4, 4, 5, 9)]
)
def test_an_oval_holds_the_centres_within_the_ellipse(tmp_path, left, top, right, bottom):
    y, x = np.indices(BOX[1:]) + 0.5
    rx, ry = (right - left) / 2, (bottom - top) / 2
    wanted = ((x - left - rx) / rx) ** 2 + ((y - top - ry) / ry) ** 2 <= 1 + 1e-12
    np.testing.assert_array_equal(plane(save(tmp_path, box_roi(ROI_TYPE.OVAL, left, top, right, bottom))), wanted)


def test_a_ring_within_a_composite_is_a_hole(tmp_path):
    def path(left, top, right, bottom):
        return [0, left, top, 1, right, top, 1, right, bottom, 1, left, bottom, 4]

    coordinates = np.array(path(1, 1, 9, 9) + path(3, 4, 6, 7), np.float32)
    composite = box_roi(ROI_TYPE.RECT, 1, 1, 9, 9, shape_roi_size=len(coordinates), multi_coordinates=coordinates)
    wanted = np.zeros(BOX[1:], int)
    wanted[1:9, 1:9] = 1
    wanted[4:7, 3:6] = 0
    np.testing.assert_array_equal(plane(save(tmp_path, composite)), wanted)


def test_instances_are_numbered_as_in_the_set_and_the_later_wins(tmp_path):
    first, other = box_roi(ROI_TYPE.RECT, 0, 0, 4, 4), box_roi(ROI_TYPE.RECT, 2, 2, 6, 6)
    ids = open_roi_set(save(tmp_path, first, polygon(z=0), other), BOX).read_instances(WHOLE)
    assert ids.dtype == np.uint32
    assert np.bincount(ids[2].ravel()).tolist() == [11 * 13 - 28, 12, 0, 16]
    assert set(np.unique(ids[0])) == {0, 2}


def test_what_leaves_the_box_is_cut_off(tmp_path):
    assert plane(save(tmp_path, box_roi(ROI_TYPE.RECT, -3, 9, 2, 20))).sum() == 4


def test_a_single_roi_and_a_folder_of_them_are_sets_too(tmp_path):
    for name, z in (("b10.roi", 1), ("b9.roi", 3), (".hidden.roi", 0)):
        polygon(z=z).tofile(tmp_path / name)
    assert list(open_roi_set(tmp_path / "b9.roi", BOX).slices) == [3]
    ids = open_roi_set(tmp_path, BOX).read_instances(WHOLE)
    assert [ids[1].max(), ids[3].max()] == [2, 1]  # s9 before s10
    assert list(open_roi_set(tmp_path, BOX).identity()["files"]) == ["b9.roi", "b10.roi"]


def test_names_in_a_zip_are_never_paths(tmp_path):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr("../../outside.roi", polygon(name="").tobytes())
        archive.writestr("__MACOSX/._x.roi", b"")
        archive.writestr("notes.txt", b"")
    assert open_roi_set(tmp_path / "set.zip", BOX).slices == {2: "outside"}
    assert [p.name for p in tmp_path.rglob("*")] == ["set.zip"]


def test_on_a_box_of_one_plane_no_slice_is_needed(tmp_path):
    path = save(tmp_path, polygon(z=None))
    assert open_roi_set(path, (1, 11, 13)).read(Box.of_shape((1, 11, 13)), (0,)).sum() == 21
    with pytest.raises(UserError, match=r"the ROI 'cell' belongs to no slice, and so to all 5 of them"):
        open_roi_set(path, BOX)


@pytest.mark.parametrize(
    ("roi", "said"),
    [
        (polygon(kind=ROI_TYPE.POINT), "'cell' is a point or several, .* draw outlines"),
        (polygon(kind=ROI_TYPE.POLYLINE), "'cell' is a segmented line"),
        (polygon(kind=ROI_TYPE.ANGLE), "'cell' is an angle"),
        (ImagejRoi(roitype=ROI_TYPE.LINE, position=1, name="axis", x2=3.0), "'axis' is a line"),
        (box_roi(ROI_TYPE.RECT, 0, 0, 4, 4, subtype=ROI_SUBTYPE.TEXT, text="hm"), "'box' is a text"),
        (box_roi(ROI_TYPE.RECT, 0, 0, 4, 4, rounded_rect_arc_size=2), "'box' is a rectangle with rounded corners"),
        (polygon(options=ROI_OPTIONS.SPLINE_FIT), "'cell' is fitted by a spline"),
        (polygon([[1, 1], [5, 1]]), "'cell' encloses nothing"),
        (polygon([[1, 1], [5, 1], [3, 1]]), "'cell' encloses nothing"),
        (polygon(z=None, z_position=1, t_position=3), "'cell' lies on time frame 3"),
        (
            polygon(z=5),
            r"'cell' lies wholly outside: it covers \[\[5, 6\], \[1, 7\], \[1, 7\]\] .* shape \(5, 11, 13\)",
        ),
        (
            polygon([[20, 1], [25, 1], [22, 9]]),
            r"'cell' lies wholly outside: it covers \[\[2, 3\], \[1, 9\], \[20, 25\]\]",
        ),
    ],
)
def test_what_is_no_outline_of_the_box_is_named(tmp_path, roi, said):
    with pytest.raises(UserError, match=said):
        open_roi_set(save(tmp_path, polygon(name="good"), roi), BOX)


def test_an_endless_outline_is_refused(tmp_path):
    roi = polygon([[1.0, 1.0], [5.0, 9.0], [3.0, 1.0]])
    roi.subpixel_coordinates[1, 1] = np.inf
    with pytest.raises(UserError, match="'cell' encloses nothing"):
        open_roi_set(save(tmp_path, roi), BOX)


@pytest.mark.parametrize("content", [b"", b"Iout", b"PK\3\4 no zip", b"x" * 300])
def test_broken_files_are_refused(tmp_path, content):
    for name in ("set.zip", "one.roi"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name):
            open_roi_set(tmp_path / name, BOX)
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr("seven.roi", content)
    with pytest.raises(UserError, match=r"bad\.zip: 'seven\.roi' is no readable ROI"):
        open_roi_set(tmp_path / "bad.zip", BOX)


@pytest.mark.parametrize("length", range(0, 300, 7))
def test_a_truncated_roi_is_refused_or_its_outline_is_whole(tmp_path, length):
    (tmp_path / "one.roi").write_bytes(polygon(z=2).tobytes()[:length])
    try:
        found = open_roi_set(tmp_path / "one.roi", (1, 11, 13))
    except UserError:
        return
    assert found.read(Box.of_shape((1, 11, 13)), (0,)).sum() == 21


def test_an_empty_set_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no ROI"):
        open_roi_set(save(tmp_path), BOX)


def test_rois_beside_tiffs_are_not_guessed_about(tmp_path):
    polygon().tofile(tmp_path / "a.roi")
    (tmp_path / "a.tif").touch()
    with pytest.raises(UserError, match="holds both TIFF and"):
        open_roi_set(tmp_path, BOX)


def test_a_set_is_picklable_and_notices_that_it_has_changed(tmp_path):
    roi_set = pickle.loads(pickle.dumps(open_roi_set(save(tmp_path, polygon()), BOX)))
    assert roi_set.read(WHOLE, (0,)).sum() == 21
    other = tmp_path / "moved"
    changed = type(roi_set)(str(tmp_path / "set.zip"), "0" * 64, BOX)
    with pytest.raises(Failure, match="has changed since it was opened"):
        changed.read(WHOLE, (0,))
    (tmp_path / "set.zip").rename(other)
    with pytest.raises(Failure, match="can no longer be read"):
        roi_set.identity()
