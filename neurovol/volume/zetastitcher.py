"""A ZetaStitcher project as a source: tiles in the places that its `stitch.yml` tells, fused while they are read.

Read from the yml: per tile of `filematrix` the file's name, its absolute position in voxels (Xs, Ys, Zs, rounded,
then shifted so that the least of each is 0) and its size (xsize, ysize, nfrms); of `xcorr-options` the voxel size.
How overlaps are blended is told in blending.py. A tile that is missing on disk is zeros and takes no part in a blend.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from neurovol.errors import Failure, UserError
from neurovol.geometry import Box, Zyx, zyx
from neurovol.volume.blending import Tile, fuse
from neurovol.volume.tiffmap import Stamp, VoxelSize
from neurovol.volume.tilestack import Files, TileStack, check_kind, files_of, open_stack

STITCH_YML = "stitch.yml"
BLENDING = 1  # to be counted up when voxels come out otherwise
FARTHEST = 2**40  # voxels; no position is meant that lies beyond
LISTED = 5  # missing tiles that a message names
POSITION, SIZE = ("Zs", "Ys", "Xs"), ("nfrms", "ysize", "xsize")  # z, y, x

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ZetaStitcherSource:
    """A mosaic of tile stacks; (c, z, y, x), uint8 or uint16. Workers read the yml themselves, and tiles on need."""

    path: str  # of the yml
    stamp: Stamp  # of the yml
    tiles_sha256: tuple[str, ...]  # per tile, shortened, of its files' names, sizes and times; "" where it is missing
    shape: tuple[int, int, int, int]
    dtype: np.dtype[Any]
    voxel_size_um: VoxelSize | None
    grain: Zyx  # of the first tile

    def read(self, box: Box, channels: tuple[int, ...], out: NDArray[Any] | None = None) -> NDArray[Any]:
        """(c, z, y, x) of a box inside the fused volume; Failure names the file and z that could not be read."""
        out = np.empty((len(channels), *box.shape), self.dtype) if out is None else out
        mosaic = self._mosaic()
        there = [i for i in mosaic.meeting(box) if self.tiles_sha256[i]]
        fuse([Tile(mosaic.boxes[i], partial(self._read_tile, mosaic, i)) for i in there], box, channels, out)
        return out

    def identity(self) -> dict[str, Any]:
        """What the content depends on: the yml, the tiles' files, which tiles are missing, how they are blended."""
        names = self._mosaic().names
        there = {n: s for n, s in zip(names, self.tiles_sha256, strict=True) if s}
        return {
            "kind": "ZetaStitcher project",
            "files": {Path(self.path).name: list(self.stamp), **{n: self._files(n, s) for n, s in there.items()}},
            "missing": [n for n in names if n not in there],
            "blending": BLENDING,
        }

    def _files(self, name: str, sha256: str) -> list[int | str]:
        return _told(Path(self.path).parent / name, sha256)

    def _mosaic(self) -> Mosaic:
        return _verified_mosaic(self.path, self.stamp)

    def _read_tile(
        self, mosaic: Mosaic, index: int, box: Box, channels: tuple[int, ...], out: NDArray[Any]
    ) -> NDArray[Any]:
        """Of a box in the fused volume that lies inside the tile."""
        place = mosaic.boxes[index]
        z, y, x = place.start
        local = box.shifted((-z, -y, -x))
        shape = (self.shape[0], *place.shape)
        try:
            stack = _stack(self.path, mosaic.names[index], self.tiles_sha256[index], shape, self.dtype)
        except (UserError, Failure, OSError) as error:
            raise Failure(f"{error} (needed for its planes z = {local.start[0]} to {local.stop[0] - 1})") from None
        return stack.read(local, channels, out)


@dataclass(frozen=True, eq=False)
class Mosaic:
    """Which tiles there should be, relative to the yml, and where they lie in the fused volume."""

    names: tuple[str, ...]
    boxes: tuple[Box, ...]
    voxel_size_um: VoxelSize | None
    ends: NDArray[np.int64] = field(init=False)  # of the boxes: (tile, start or stop, zyx)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ends", np.array([(b.start, b.stop) for b in self.boxes], np.int64))

    @property
    def shape(self) -> Zyx:
        return zyx(self.ends[:, 1].max(axis=0))

    def meeting(self, box: Box) -> list[int]:
        """The tiles that share a voxel with a box, in the order of the yml."""
        shared = np.minimum(self.ends[:, 1], box.stop) > np.maximum(self.ends[:, 0], box.start)
        return [int(i) for i in np.flatnonzero(shared.all(axis=1))]


def open_zetastitcher(path: Path) -> ZetaStitcherSource:
    """The project of a `stitch.yml`, or of the folder that holds one.

    All tiles are looked for; the first that is there is opened, the others when they are first read.
    """
    yml = path / STITCH_YML if path.is_dir() else path
    try:
        found = yml.stat()
        mosaic = read_mosaic(yml)
        files = [_looked_at(yml.parent / name, box) for name, box in zip(mosaic.names, mosaic.boxes, strict=True)]
    except FileNotFoundError:
        raise UserError(f"{yml}: there is no such file; give a ZetaStitcher project's folder or its yml") from None
    except OSError as error:
        raise UserError(f"{error.filename or yml}: cannot be read: {error.strerror}") from None
    _report_missing(yml, [name for name, f in zip(mosaic.names, files, strict=True) if f is None], len(files))
    first = next(i for i, f in enumerate(files) if f is not None)
    stack = open_stack(yml.parent / mosaic.names[first])
    _check_stack(yml.parent / mosaic.names[first], stack, (stack.shape[0], *mosaic.boxes[first].shape), stack.dtype)
    return ZetaStitcherSource(
        str(yml),
        (found.st_size, found.st_mtime_ns),
        tuple(_short(f) for f in files),
        (stack.shape[0], *mosaic.shape),
        stack.dtype,
        mosaic.voxel_size_um,
        stack.grain,
    )


def _looked_at(path: Path, box: Box) -> Files | None:
    """A tile's files, by stat; a UserError where they cannot be the tile."""
    check_kind(path)
    files = files_of(path)
    if files is not None and path.is_dir() and files.n != box.shape[0]:
        raise UserError(
            f"{path}: the folder holds {files.n} TIFFs, but by the yml the tile has {box.shape[0]} slices (nfrms); "
            f"copy it again, or move it away to have zeros in its place"
        )
    if files is not None and files.size_bytes == 0:
        raise UserError(f"{path}: is empty; copy it again, or move it away to have zeros in its place")
    return files


def _report_missing(yml: Path, missing: Sequence[str], total: int) -> None:
    if not missing:
        return
    listed = ", ".join(missing[:LISTED]) + (", …" if len(missing) > LISTED else "")
    if len(missing) == total:
        raise UserError(f"{yml}: none of its {total} tiles is there ({listed}); they should lie beside the yml")
    log.warning("%s: %d of %d tiles are missing, zeros stand in their place: %s", yml, len(missing), total, listed)


def _check_stack(path: Path, stack: TileStack, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """`shape` is (c, z, y, x): the channels of the first tile, and the size by the yml."""
    if stack.shape[1:] != shape[1:]:
        raise UserError(
            f"{path}: has {stack.shape[1:]} voxels, but by the yml {shape[1:]} (nfrms, ysize, xsize); "
            f"a tile and its entry must agree: copy the tile again, or run stitch-align again"
        )
    if (stack.shape[0], stack.dtype) != (shape[0], dtype):
        raise UserError(
            f"{path}: has {stack.shape[0]} channel(s) of {stack.dtype}, but the first tile {shape[0]} of {dtype}; "
            f"all tiles of a project must agree: export them alike"
        )


def _short(files: Files | None) -> str:
    """Enough to notice a change, as a source travels with every block."""
    return "" if files is None else files.sha256[:16]


@lru_cache(maxsize=4096)  # a plane of a large mosaic touches all of its tiles
def _stack(yml: str, name: str, expected_sha256: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> TileStack:
    """A tile, opened and checked once per process; it notices by itself what changes later."""
    path = Path(yml).parent / name
    _told(path, expected_sha256)
    stack = open_stack(path)
    _check_stack(path, stack, shape, dtype)
    return stack


def _told(path: Path, expected_sha256: str) -> list[int | str]:
    """How many files a tile has, their size in bytes, and what their names, sizes and times come to."""
    files = files_of(path)
    if files is None or _short(files) != expected_sha256:
        raise Failure(f"{path}: has changed since the project was opened; run again once nothing writes to it any more")
    return [files.n, files.size_bytes, expected_sha256]


@lru_cache(maxsize=4)
def _verified_mosaic(yml: str, stamp: Stamp) -> Mosaic:
    try:
        found = Path(yml).stat()
        if (found.st_size, found.st_mtime_ns) == stamp:
            return read_mosaic(Path(yml))
    except (OSError, UserError) as error:
        raise Failure(f"{yml}: can no longer be read: {error}") from None
    raise Failure(f"{yml}: has changed since it was opened; run again once nothing writes to it any more")


def read_mosaic(yml: Path) -> Mosaic:
    """What a `stitch.yml` tells; UserErrors name what is missing or wrong."""
    told = _loaded(yml)
    rows = told.get("filematrix")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{yml}: has no list of tiles, `filematrix`; give the stitch.yml that stitch-align has written")
    names = tuple(_name(yml, row) for row in rows)
    corners = np.array([_whole(yml, row, POSITION) for row in rows], np.int64)
    sizes = np.array([_whole(yml, row, SIZE, least=1) for row in rows], np.int64)
    corners -= corners.min(axis=0)
    boxes = tuple(Box(zyx(a), zyx(a + n)) for a, n in zip(corners, sizes, strict=True))
    return Mosaic(names, boxes, _voxel_size(told.get("xcorr-options")))


def _loaded(yml: Path) -> dict[str, Any]:
    try:
        told = yaml.safe_load(yml.read_bytes())
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error)
        raise UserError(f"{yml}: not plain YAML: {where}{problem}; give a ZetaStitcher project's stitch.yml") from None
    return told if isinstance(told, dict) else {}


def _name(yml: Path, row: dict[str, Any]) -> str:
    """Where a tile lies, relative to the yml, with slashes; it has to stay beside it."""
    name = row.get("filename")
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        raise UserError(f"{yml}: a tile of its filematrix has no `filename`: {row}; run stitch-align again")
    path = PureWindowsPath(name)  # which takes both kinds of slashes
    if path.anchor or ".." in path.parts or not path.parts:
        raise UserError(
            f"{yml}: its tile {name!r} lies outside the project's folder; "
            f"tiles have to lie beside the yml or in folders there: move them, and correct `filename`"
        )
    return path.as_posix()


def _whole(yml: Path, row: dict[str, Any], keys: Sequence[str], least: int | None = None) -> list[int]:
    """Numbers of a tile, rounded to whole ones."""
    values = []
    for key in keys:
        value = row.get(key)
        if keys is POSITION and (value is None or value != value):  # missing, or NaN as pandas writes it
            raise UserError(
                f"{yml}: its tile {row['filename']} has no {key}: absolute positions are missing; "
                f"stitch it first: stitch-fuse works them out and adds them to the yml"
            )
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < FARTHEST:
            raise UserError(f"{yml}: its tile {row['filename']} has {key} = {value}; a number of voxels is expected")
        values.append(math.floor(value + 0.5))
        if least is not None and values[-1] < least:
            raise UserError(f"{yml}: its tile {row['filename']} has {key} = {value}; {least} or more is expected")
    return values


def _voxel_size(options: Any) -> VoxelSize | None:
    """(z, y, x) in µm; None where it is not told: ZetaStitcher then writes 1 for both, and counts in voxels."""
    told = options if isinstance(options, dict) else {}
    sizes = [told.get(key) for key in ("px_size_z", "px_size_xy")]
    z, xy = (float(v) if isinstance(v, int | float) and 0 < v < math.inf else None for v in sizes)
    return None if z is None or xy is None or z == xy == 1 else (z, xy, xy)
