"""ImageJ ROI sets as annotations: outlines drawn slice by slice, read as an image of 0 and 1, and of instances.

The rule is ImageJ's own, so that what is read is the mask ImageJ shows: coordinates are pixel corners, and a pixel
is inside if its centre (x + 0.5, y + 0.5) is; where outlines cross themselves, or one lies within another of the
same ROI, inside and outside alternate (even-odd). A centre on an outline counts as inside on its right and lower
side, as outside on its left and upper side.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from roifile import ROI_OPTIONS, ROI_SUBTYPE, ROI_TYPE, ImagejRoi

from neurovol.errors import Failure, UserError
from neurovol.geometry import Box, Zyx, zyx
from neurovol.volume.tiff import natural_key

Ring = NDArray[np.float64]  # (corners, 2): x, y; closed from the last to the first
Files = tuple[tuple[str, int, int], ...]  # name, size in bytes, time of last change in ns

LARGEST_ROI = 2**26  # bytes; what unpacks to more is no outline

_OUTLINES = (ROI_TYPE.POLYGON, ROI_TYPE.FREEHAND, ROI_TYPE.TRACED)
_KINDS = {
    ROI_TYPE.LINE: "a line",
    ROI_TYPE.FREELINE: "a freehand line",
    ROI_TYPE.POLYLINE: "a segmented line",
    ROI_TYPE.NOROI: "empty",
    ROI_TYPE.ANGLE: "an angle",
    ROI_TYPE.POINT: "a point or several",
}
_SUBTYPES = {ROI_SUBTYPE.TEXT: "a text", ROI_SUBTYPE.ARROW: "an arrow", ROI_SUBTYPE.IMAGE: "a picture"}


@dataclass(frozen=True)
class Outline:
    """One ROI: its number in the set, from 1; its rings; and the box of pixels that holds them, one plane deep."""

    number: int
    name: str
    rings: tuple[Ring, ...]
    box: Box


@dataclass(frozen=True)
class RoiSet:
    """An ImageJ ROI set, read like an annotation file of its box's shape; workers parse the files themselves."""

    path: str
    listing_sha256: str  # of names, sizes and times, so that a set that changes under way is noticed
    box_shape: Zyx

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (1, *self.box_shape)

    def read(self, box: Box, channels: tuple[int, ...]) -> NDArray[np.uint8]:
        """(1, z, y, x): 1 inside any outline, else 0; Failure where the files have changed."""
        return (self.read_instances(box) > 0).astype(np.uint8)[None]

    def read_instances(self, box: Box) -> NDArray[np.uint32]:
        """(z, y, x): 1 for the first ROI of the set, 2 for the second …; where they overlap, the later one's."""
        out = np.zeros(box.shape, np.uint32)
        for z in range(box.start[0], box.stop[0]):
            for outline in self._drawn().get(z, ()):
                part = outline.box.intersect(box)
                if part.size:
                    out[part.within(box)][:, inside(outline.rings, part)] = outline.number
        return out

    @property
    def slices(self) -> dict[int, str]:
        """The planes on which something is drawn, in order, each with the name of the first ROI there."""
        return {z: outlines[0].name for z, outlines in sorted(self._drawn().items())}

    def identity(self) -> dict[str, Any]:
        """What the content depends on: the files' names, sizes and times of last change."""
        files = _verified_listing(Path(self.path), self.listing_sha256)
        return {"kind": "ImageJ ROI set", "files": {name: [size, time] for name, size, time in files}}

    def _drawn(self) -> dict[int, list[Outline]]:
        return _outlines(Path(self.path), self.listing_sha256, self.box_shape[0])


def is_roi_set(path: Path) -> bool:
    """Whether a path names a .roi file, a .zip, or a folder that holds .roi files."""
    return path.suffix.lower() in (".roi", ".zip") or (path.is_dir() and bool(_roi_names(path)))


def open_roi_set(path: Path, box_shape: Zyx) -> RoiSet:
    """A .roi file, a .zip of them, or a folder of them in natural order, drawn on a box of that shape.

    x and y count from the box's corner, slices from 1. A UserError names the ROI that is no outline, has no
    slice of its own, or lies wholly outside; one that lies partly outside is cut off there.
    """
    try:
        found = RoiSet(str(path), _sha256(_listing(path)), box_shape)
        drawn = _outlines(path, found.listing_sha256, box_shape[0])
    except Failure as error:
        raise UserError(str(error)) from None
    except OSError as error:
        raise UserError(f"{error.filename or path}: cannot be read: {error.strerror or error}") from None
    if path.is_dir() and any(path.glob("*.tif*")):
        raise UserError(f"{path}: holds both TIFF and .roi files; put the ROIs in a folder or .zip of their own")
    if not drawn:
        raise UserError(f"{path}: holds no ROI; save the set in ImageJ's ROI Manager by More > Save")
    for outline in (o for outlines in drawn.values() for o in outlines):
        if not outline.box.intersect(Box.of_shape(box_shape)).size:
            raise UserError(
                f"{path}: the ROI {outline.name!r} lies wholly outside: it covers "
                f"{[list(p) for p in outline.box.pairs]} (z, y, x from 0), but the annotation's box has the shape "
                f"{box_shape}; coordinates and slices count from the corner of that box"
            )
    return found


def inside(rings: tuple[Ring, ...], box: Box) -> NDArray[np.bool_]:
    """(y, x) of a box: the pixels whose centres lie inside the rings, even-odd.

    >>> inside((np.array([[1.0, 0.0], [3.0, 0.0], [3.0, 2.0], [1.0, 2.0]]),), Box((0, 0, 0), (1, 3, 4))).astype(int)
    array([[0, 1, 1, 0],
           [0, 1, 1, 0],
           [0, 0, 0, 0]])
    """
    _, height, width = box.shape
    _, top, left = box.start
    a = np.concatenate(rings) - (left, top)
    b = np.concatenate([np.roll(ring, -1, axis=0) for ring in rings]) - (left, top)
    # rows whose centres an edge crosses; floor(y + 0.5) is the first one below y
    ends = (np.minimum(a[:, 1], b[:, 1]), np.maximum(a[:, 1], b[:, 1]))
    first, last = (np.clip(np.floor(y + 0.5), 0, height).astype(np.int64) for y in ends)
    edge = np.repeat(np.arange(len(a)), last - first)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(last - first) - last, last - first)
    (x0, y0), (dx, dy) = a[edge].T, (b - a)[edge].T
    # multiplied before divided: exact where a crossing meets a centre
    crossing = x0 + (row + 0.5 - y0) * dx / dy
    column = np.clip(np.floor(crossing + 0.5), 0, width).astype(np.int64)
    turns = np.zeros((height, width + 1), np.int64)
    np.add.at(turns, (row, column), 1)
    inner: NDArray[np.bool_] = np.cumsum(turns[:, :-1], axis=1) % 2 == 1
    return inner


def _roi_names(folder: Path) -> list[str]:
    names = (entry.name for entry in os.scandir(folder))
    return sorted((n for n in names if _is_roi(n)), key=lambda n: (natural_key(n), n))


def _is_roi(name: str) -> bool:
    base = name.rpartition("/")[2]
    return base.lower().endswith(".roi") and not base.startswith(".")


def _listing(path: Path) -> Files:
    files = [path / name for name in _roi_names(path)] if path.is_dir() else [path]
    stats = [(file.name, file.stat()) for file in files]
    return tuple((name, found.st_size, found.st_mtime_ns) for name, found in stats)


def _sha256(files: Files) -> str:
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


def _verified_listing(path: Path, expected_sha256: str) -> Files:
    try:
        files = _listing(path)
    except OSError as error:
        raise Failure(f"{path}: can no longer be read: {error}") from None
    if _sha256(files) != expected_sha256:
        raise Failure(f"{path}: has changed since it was opened; run again once nothing writes to it any more")
    return files


@lru_cache(maxsize=16)
def _outlines(path: Path, listing_sha256: str, depth: int) -> dict[int, list[Outline]]:
    """The ROIs of a set by plane, read once per process. UserError for one that is no outline."""
    _verified_listing(path, listing_sha256)
    drawn: dict[int, list[Outline]] = {}
    try:
        for number, (file, data) in enumerate(_contents(path), start=1):
            outline = _outline(path, number, file, data, depth)
            drawn.setdefault(outline.box.start[0], []).append(outline)
    except UserError:
        raise
    except Exception as error:  # zip files are broken in many ways
        raise Failure(f"{path}: the ROI set could not be read: {error}; save it again") from None
    return drawn


def _contents(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each ROI, in the order of the set; nothing is unpacked to disk."""
    if path.is_dir():
        yield from ((name, (path / name).read_bytes()) for name in _roi_names(path))
    elif path.suffix.lower() == ".zip":
        with zipfile.ZipFile(path) as archive:
            for name in filter(_is_roi, archive.namelist()):
                with archive.open(name) as file:
                    yield name, _bounded(file.read, name)
    else:
        yield path.name, path.read_bytes()


def _bounded(read: Callable[[int], bytes], name: str) -> bytes:
    data = read(LARGEST_ROI + 1)
    if len(data) > LARGEST_ROI:
        raise ValueError(f"{name!r} is larger than {LARGEST_ROI} bytes")
    return data


def _outline(path: Path, number: int, file: str, data: bytes, depth: int) -> Outline:
    try:
        roi = ImagejRoi.frombytes(data)
        name = roi.name or file.rpartition("/")[2].removesuffix(".roi")
        rings = _rings(f"{path}: the ROI {name!r}", roi)
    except UserError:
        raise
    except Exception as error:  # roifile has no error of its own for broken data
        raise UserError(f"{path}: {file!r} is no readable ROI: {error}; save it again in ImageJ") from None
    points = np.concatenate([*rings, np.empty((0, 2))])
    if len(points) < 3 or not np.isfinite(points).all() or (np.ptp(points, axis=0) == 0).any():
        raise UserError(f"{path}: the ROI {name!r} encloses nothing; delete it, or draw it again")
    z = _plane(f"{path}: the ROI {name!r}", roi, depth)
    low, high = np.floor(points.min(axis=0)), np.ceil(points.max(axis=0))
    return Outline(number, name, rings, Box(zyx((z, low[1], low[0])), zyx((z + 1, high[1], high[0]))))


def _plane(what: str, roi: ImagejRoi, depth: int) -> int:
    """The plane an ROI lies on, from 0: a hyperstack's slice, or a plain stack's position."""
    if roi.t_position > 1:
        raise UserError(
            f"{what} lies on time frame {roi.t_position}, but a sample has no time; set the stack in ImageJ by "
            f"Image > Properties (slices, frames = 1), and draw on slices"
        )
    position: int = roi.z_position or roi.position
    if position < 1 and depth > 1:
        raise UserError(
            f"{what} belongs to no slice, and so to all {depth} of them; give it one in ImageJ's ROI Manager "
            f"(Properties > Position), and save the set again"
        )
    return max(position, 1) - 1


def _rings(what: str, roi: ImagejRoi) -> tuple[Ring, ...]:
    if roi.subtype in _SUBTYPES or roi.roitype in _KINDS:
        kind = _SUBTYPES.get(roi.subtype) or _KINDS[roi.roitype]
        raise UserError(f"{what} is {kind}, which encloses nothing; draw outlines (polygon, freehand, oval, rectangle)")
    if roi.options & ROI_OPTIONS.SPLINE_FIT:
        raise UserError(
            f"{what} is fitted by a spline, so that its corners are not its outline; in ImageJ use "
            f"Edit > Selection > Interpolate on it, and save the set again"
        )
    if roi.composite:
        return tuple(np.asarray(ring, np.float64) for ring in roi.coordinates(multi=True))
    if roi.roitype in _OUTLINES:
        return (np.asarray(roi.coordinates(), np.float64),)
    if roi.roitype in (ROI_TYPE.RECT, ROI_TYPE.OVAL) and not roi.rounded_rect_arc_size:
        left, top, width, height = _bounds(roi)
        right, bottom = left + width, top + height
        rectangle = np.array([[left, top], [right, top], [right, bottom], [left, bottom]], np.float64)
        return (rectangle if roi.roitype == ROI_TYPE.RECT else _oval(left, top, width, height),)
    kind = "a rectangle with rounded corners" if roi.rounded_rect_arc_size else f"of unknown type {int(roi.roitype)}"
    raise UserError(f"{what} is {kind}, which is not supported; draw it as a polygon")


def _bounds(roi: ImagejRoi) -> tuple[float, float, float, float]:
    """Left, top, width and height of a rectangle or oval."""
    if roi.subpixelrect:
        return roi.xd, roi.yd, roi.widthd, roi.heightd
    return roi.left, roi.top, roi.right - roi.left, roi.bottom - roi.top


def _oval(left: float, top: float, width: float, height: float) -> Ring:
    """A polygon with corners where the ellipse crosses the middle of each row, so that it is exact at pixel centres."""
    rx, ry = width / 2, height / 2
    y = np.arange(np.floor(top + 0.5), np.floor(top + height + 0.5)) + 0.5
    share = 1 - ((y - top - ry) / ry) ** 2
    # ImageJ counts centres on an ellipse as inside on both sides
    half = rx * np.sqrt(np.clip(share, 0, None)) + 1e-9
    ends = [[left + rx, top], [left + rx, top + height]]
    right = np.stack([left + rx + half, y], axis=1)
    return np.concatenate([ends[:1], right, ends[1:], (right * (-1, 1) + (2 * (left + rx), 0))[::-1]])
