"""A sample as Zarr: an array (v2 or v3, sharded or not), or the finest level of an OME-Zarr image (0.4, 0.5)."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.buffer.cpu import NDBuffer

from neurovol.errors import Failure, UserError
from neurovol.geometry import Box, Zyx
from neurovol.levels import files_of
from neurovol.volume.stored import open_volume
from neurovol.volume.zarrmeta import VoxelSize, axes_of, described, node_at

Stamps = tuple[tuple[str, int, int], ...]  # of files: path, size in bytes, time of last change in ns

LARGEST_TRIAL = 2**28  # bytes of a chunk that is decoded at the door, to see that it can be


@dataclass(frozen=True)
class ZarrSource:
    """A Zarr array of microscopy; (c, z, y, x), uint8 or uint16. A missing chunk is its fill value, as Zarr has it."""

    path: str  # of the array
    axes: str  # of the array, in its order, such as "tczyx"
    shape: tuple[int, int, int, int]
    dtype: np.dtype[Any]
    voxel_size_um: VoxelSize | None
    grain: Zyx  # a chunk, or within shards one of their chunks
    stamps: Stamps  # of the metadata, so that another array in this one's place is noticed
    metadata_sha256: str
    chunk_files: int
    chunk_bytes: int
    newest_ns: int

    def read(self, box: Box, channels: tuple[int, ...], out: NDArray[Any] | None = None) -> NDArray[Any]:
        """(c, z, y, x) of a box inside the array, only its chunks loaded; Failure names the array and the box."""
        out = np.empty((len(channels), *box.shape), self.dtype) if out is None else out
        try:
            array = _array(self.path, _unchanged(self.stamps))
            for i, first, n in _runs(channels) if box.size else ():
                wanted = {"t": slice(0, 1), "c": slice(first, first + n), **dict(zip("zyx", box.slices, strict=True))}
                target = NDBuffer.from_numpy_array(_as_stored(out[i : i + n], self.axes))
                array.get_basic_selection(tuple(wanted[a] for a in self.axes), out=target)
        except MemoryError:
            raise
        except Exception as error:  # every codec has errors of its own
            said = str(error) or type(error).__name__
            raise Failure(f"{self.path}: box {box.pairs} (z, y, x) could not be read: {said}") from error
        return out

    def identity(self) -> dict[str, Any]:
        """What the content depends on: the metadata, and number, size and newest change of the chunks' files."""
        chunks = {"files": self.chunk_files, "bytes": self.chunk_bytes, "newest_ns": self.newest_ns}
        return {"kind": "Zarr", "axes": self.axes, "metadata_sha256": self.metadata_sha256, "chunks": chunks}


def _runs(channels: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Runs of consecutive channels: place in `channels`, first channel, how many.

    >>> list(_runs((2, 3, 1)))
    [(0, 2, 2), (2, 1, 1)]
    """
    start = 0
    for i in range(1, len(channels) + 1):
        if i == len(channels) or channels[i] != channels[i - 1] + 1:
            yield start, channels[start], i - start
            start = i


def _as_stored(out_CZYX: NDArray[Any], axes: str) -> NDArray[Any]:
    """A view with the array's own axes in their order."""
    view = out_CZYX[None][tuple(slice(None) if a in axes else 0 for a in "tczyx")]
    kept = [a for a in "tczyx" if a in axes]
    return view.transpose([kept.index(a) for a in axes])


@lru_cache(maxsize=16)
def _array(path: str, stamps: Stamps) -> zarr.Array[Any]:
    return zarr.open_array(path, mode="r", zarr_format=3 if (Path(path) / "zarr.json").exists() else 2)


def _stamps(files: Sequence[Path]) -> Stamps:
    return tuple((str(file), found.st_size, found.st_mtime_ns) for file in files for found in [file.stat()])


def _unchanged(stamps: Stamps) -> Stamps:
    if _stamps([Path(path) for path, _, _ in stamps]) != stamps:
        raise ValueError("its metadata have changed since it was opened; run again once nothing writes to it any more")
    return stamps


def open_zarr(path: Path) -> ZarrSource:
    """A Zarr array, or the finest level of an OME-Zarr image (its first multiscale); checked at the door.

    Axes go by name (OME metadata, `dimension_names` or `_ARRAY_DIMENSIONS`), else three are z, y, x and four
    c, z, y, x. The chunks' files are counted once, here.
    """
    path = Path(path)
    _check_is_folder(path)
    try:
        return _opened(path)
    except OSError as error:
        raise UserError(f"{error.filename or path}: cannot be read: {error.strerror or error}") from None


def _check_is_folder(path: Path) -> None:
    if path.is_dir():
        return
    if path.exists():
        raise UserError(
            f"{path}: is a file, but a Zarr array or image is a folder; give that (unpack it if it is zipped)"
        )
    if any(re.fullmatch(r"[a-z][a-z0-9+.-]+:", part) for part in path.parts):
        raise UserError(
            f"{path}: is an address, but only local Zarr is read; copy or mount it, and give its local path"
        )
    raise UserError(f"{path}: there is no such folder; give the folder of a Zarr array or of an OME-Zarr image")


def _opened(path: Path) -> ZarrSource:
    image = described(path)
    folder, stamps = image.array.folder, _stamps(image.files)
    try:
        array = _array(str(folder), stamps)
    except Exception as error:  # of metadata and codecs that zarr does not know
        raise UserError(f"{folder}: cannot be opened as a Zarr array: {error}; write it again in another way") from None
    dtype = array.dtype.newbyteorder("=")
    if dtype not in (np.dtype(np.uint8), np.dtype(np.uint16)):
        raise UserError(
            f"{folder}: its voxels are {dtype}; uint8 or uint16 is expected: convert it to 8 or 16 bit first"
        )
    if min(array.shape, default=0) < 1 or (len(array.shape) < 3 and image.files == image.array.files):
        raise UserError(
            f"{folder}: is no stack, its shape is {array.shape}; a sample has 3 (z, y, x) or 4 axes (c, z, y, x)"
        )
    axes = axes_of(folder, array.shape, image.axes)
    shape, chunk = dict(zip(axes, array.shape, strict=True)), dict(zip(axes, array.chunks, strict=True))
    c, z, y, x = (shape.get(a, 1) for a in "czyx")
    grain = (chunk.get("z", 1), chunk["y"], chunk["x"])
    told = (_sha256(image.files), *_chunk_files(folder))
    source = ZarrSource(str(folder), axes, (c, z, y, x), dtype, image.voxel_size_um, grain, stamps, *told)
    _check_own(source)
    if prod(array.chunks) * dtype.itemsize <= LARGEST_TRIAL:
        try:  # a codec that is not there shows at the door, not in the night
            source.read(Box((0, 0, 0), (1, 1, 1)), (0,))
        except Failure as error:
            raise UserError(f"{error}; copy or write it again") from None
    return source


def _sha256(files: Sequence[Path]) -> str:
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()


def _chunk_files(array: Path) -> tuple[int, int, int]:
    """Number, bytes and newest change in ns of the files that hold an array's chunks; an empty one is refused."""
    count = size = newest = 0
    pending = [str(array)]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_dir():
                    pending.append(entry.path)
                elif entry.name[0] != "." and entry.name != "zarr.json" and not entry.name.endswith(".partial"):
                    found = entry.stat()
                    if found.st_size == 0:  # zarr would read a shard that was torn like this as fill values
                        raise UserError(f"{entry.path}: this chunk's file is empty; copy or export the array again")
                    count, size, newest = count + 1, size + found.st_size, max(newest, found.st_mtime_ns)
    return count, size, newest


def _check_own(source: ZarrSource) -> None:
    """A level of a volume made by neurovol has to be finished, with all its shards there."""
    folder, level = Path(source.path).parent, Path(source.path).name
    group = node_at(folder)
    if group is None or "neurovol" not in group.attributes:
        return
    info = open_volume(folder)
    if not info.sparse and level.isdecimal() and int(level) < info.levels:
        n = files_of(info.level_shape(int(level)), info.shard(int(level)))
        if source.chunk_files < n:
            raise UserError(f"{source.path}: {n - source.chunk_files} of its {n} shards are missing; copy it again")
