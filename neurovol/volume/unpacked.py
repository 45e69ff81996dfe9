"""Scratch: the decoded planes of a compressed source, so that each is decoded exactly once.

A fused TIFF often holds each slice as one compressed strip: any box needs all of it. So the slices that one
layer of shards is made of are decoded once, into one raw file each, which boxes are then cut from.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurovol.errors import DiskFull, Failure
from neurovol.geometry import Block, Box, Receipt, Zyx
from neurovol.volume.planefile import passing, read_cut
from neurovol.volume.shards import NO_ROOM
from neurovol.volume.source import Source


def needs_scratch(shape: Zyx, grain: Zyx, shard: Zyx) -> bool:
    """Whether planes are decoded in pieces that lie across shards, so that shards one by one would decode them again.

    >>> needs_scratch((3000, 2000, 2000), (1, 2000, 2000), (128, 256, 256))
    True
    >>> needs_scratch((3000, 2000, 2000), (1, 256, 256), (128, 256, 256))
    False
    """
    if grain == (1, 1, 1) or grain[0] > 1:
        return False
    pieces = visits = 1
    for n, g, s in zip(shape[1:], grain[1:], shard[1:], strict=True):
        starts = range(0, n, g)
        pieces *= len(starts)
        visits *= sum((min(a + g, n) - 1) // s - a // s + 1 for a in starts)
    return visits > 1.5 * pieces  # below that the cache of decoded pieces is cheaper than writing them out


def scratch_bytes(shape: Zyx, shard: Zyx, voxel_bytes: int) -> int:
    """Room on disk for the planes of one layer of shards."""
    return min(shape[0], shard[0]) * shape[1] * shape[2] * voxel_bytes


@dataclass(frozen=True)
class Unpack:
    """Decodes the planes of a block, all of the wanted channels, to a scratch file each; not those that are there."""

    source: Source
    channels: tuple[int, ...]
    folder: str

    def __call__(self, block: Block) -> Receipt:
        for plane in planes_of(block.write):
            if not _plane_file(self.folder, plane.index).exists():
                self._unpack(plane)
        return Receipt(block.write, 0)

    def _unpack(self, plane: Block) -> None:
        file = _plane_file(self.folder, plane.index)
        partial = file.with_suffix(f".{os.getpid()}.partial")
        voxels = passing("plane", (len(self.channels), *plane.write.shape), self.source.dtype)
        self.source.read(plane.write, self.channels, voxels)
        try:
            with partial.open("wb") as out:
                out.write(voxels.data)
            partial.replace(file)
        except OSError as error:
            partial.unlink(missing_ok=True)
            if error.errno in NO_ROOM:
                raise DiskFull(f"{file}: disk full: {error.strerror}; free space, or set convert.scratch") from error
            raise Failure(f"{file}: could not be written: {error}") from error


@dataclass(frozen=True)
class Unpacked:
    """Reads boxes from the scratch files of a source, as that source would read them."""

    folder: str
    shape: tuple[int, int, int, int]
    dtype: np.dtype[Any]
    channels: tuple[int, ...]  # the source's, in the order they lie in the files

    @property
    def grain(self) -> Zyx:
        return 1, 1, 1

    @property
    def voxel_size_um(self) -> None:
        return None

    def read(self, box: Box, channels: tuple[int, ...], out: NDArray[Any] | None = None) -> NDArray[Any]:
        """(c, z, y, x) of a box; Failure where its plane could not be decoded."""
        out = np.empty((len(channels), *box.shape), self.dtype) if out is None else out
        y, x = self.shape[2:]
        _, rows, cols = box.slices
        places = [self.channels.index(c) * y * x * self.dtype.itemsize for c in channels]
        for i, z in enumerate(range(box.start[0], box.stop[0])):
            file = _plane_file(self.folder, z)
            try:
                with open(file, "rb", buffering=0) as plane:
                    for k, place in enumerate(places):
                        read_cut(plane, place, (y, x, 1), self.dtype, (rows, cols, 0), out[k, i])
            except FileNotFoundError:
                raise Failure(self._reason(z)) from None
            except (OSError, EOFError, ValueError) as error:  # the last where it is too short to be mapped
                raise Failure(f"{file}: decoded plane z = {z} could not be read: {error}; run again") from error
        return out

    def _reason(self, z: int) -> str:
        """Why a plane has no scratch file."""
        noted = _error_file(self.folder, z)
        return noted.read_text() if noted.exists() else f"{_plane_file(self.folder, z)}: is gone; run again"

    def identity(self) -> dict[str, Any]:
        return {"kind": "scratch", "folder": self.folder}


def planes_of(box: Box, at_once: int = 1) -> list[Block]:
    """The planes of a box, one block each or some `at_once`, numbered by their first z."""
    (z0, z1), (y0, y1), (x0, x1) = box.pairs
    return [Block(z, Box((z, y0, x0), (min(z + at_once, z1), y1, x1))) for z in range(z0, z1, at_once)]


def record_failure(folder: str, z: int, error: str) -> None:
    """Say why a plane has no scratch file, so that whoever needs it can."""
    _error_file(folder, z).write_text(error)


def _plane_file(folder: str, z: int) -> Path:
    return Path(folder) / f"{z}.raw"


def _error_file(folder: str, z: int) -> Path:
    return Path(folder) / f"{z}.error"
