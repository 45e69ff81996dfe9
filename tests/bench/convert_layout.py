"""What the conversion benchmark's peers share: the layout all have to write, and quick ways to read and to halve.

Imports nothing of neurovol, for the peers run in environments of their own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

CHUNK, SHARD = (64, 128, 128), (256, 512, 512)
SLICES = 16  # to a chunk of dask's; of 1, 16, 64 and 256 about the quickest, and the smallest in memory
FACTORS = ((1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2))
CODEC = os.environ.get("BENCH_CODEC", "lz4")  # or zstd; bench_convert.py sets it for all that it starts
BLOSC = {
    "cname": CODEC,
    "clevel": {"lz4": 5, "zstd": 1}[CODEC],
    "shuffle": "bitshuffle",
    "typesize": 2,
    "blocksize": 2**19,
}
CODECS = [
    {"name": "bytes", "configuration": {"endian": "little"}},
    {"name": "blosc", "configuration": BLOSC},
    {"name": "crc32c"},
]
Zyx = tuple[int, int, int]
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Slices:
    """A folder of uncompressed slices whose rows can be read by themselves."""

    files: tuple[Path, ...]
    shape: Zyx
    dtype: np.dtype[Any]
    offset: int  # of the first voxel in each file

    def read(self, out: Array, z: int, y: int) -> Array:
        """Fill (z, y, all x) from slice z and row y on."""
        skip = self.offset + y * self.shape[2] * self.dtype.itemsize
        for file, plane in zip(self.files[z : z + len(out)], out, strict=True):
            with file.open("rb", buffering=0) as handle:
                handle.seek(skip)
                if handle.readinto(plane) != plane.nbytes:
                    raise OSError(f"{file}: is shorter than it should be")
        return out


def open_slices(folder: Path) -> Slices:
    files = tuple(sorted(folder.glob("*.tif")))
    with tifffile.TiffFile(files[0]) as tif:
        page: Any = tif.pages[0]
        return Slices(files, (len(files), *page.shape), page.dtype, page.dataoffsets[0])


def level_shapes(shape: Zyx) -> list[Zyx]:
    shapes = [shape]
    for factors in FACTORS:
        shapes.append(tuple(-(-n // f) for n, f in zip(shapes[-1], factors, strict=True)))
    return shapes


def shard_of(shape: Zyx) -> Zyx:
    """As large as SHARD, but no larger than the chunks that the level needs."""
    z, y, x = (min(s, -(-n // c) * c) for s, n, c in zip(SHARD, shape, CHUNK, strict=True))
    return z, y, x


def boxes(shape: Zyx, step: Zyx) -> Iterator[tuple[slice, slice, slice]]:
    z, y, x = ([slice(a, min(a + s, n)) for a in range(0, n, s)] for n, s in zip(shape, step, strict=True))
    return ((a, b, c) for a in z for b in y for c in x)


def halved(array: Array, factors: Zyx) -> Array:
    """Means, rounded half up, of windows that are 2 wide in y and x; plane by plane, for the cache's sake.

    At an odd end the last voxel counts twice, which gives the mean of those that exist.
    """
    deep, shift = factors[0], (4 * factors[0]).bit_length() - 1
    out = np.empty([-(-n // f) for n, f in zip(array.shape, factors, strict=True)], array.dtype)
    for z, means in enumerate(out):
        sums = np.full(means.shape, 1 << shift >> 1, np.uint32)
        for k in range(deep):
            plane = array[min(z * deep + k, len(array) - 1)]
            if plane.shape[0] % 2 or plane.shape[1] % 2:
                plane = np.pad(plane, [(0, n % 2) for n in plane.shape], mode="edge")
            rows = np.add(plane[0::2], plane[1::2], dtype=np.uint32)
            sums += rows[:, 0::2]
            sums += rows[:, 1::2]
        means[...] = sums >> shift
    return out
