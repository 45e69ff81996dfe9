"""Histograms of non-zero voxels, made per block and merged exactly: what intensities are normalised by.

Zeros are left out: they are the empty surroundings of the tissue, up to half of a volume.
"""

from __future__ import annotations

import ctypes
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from math import ceil, prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurovol.errors import Failure, UserError
from neurovol.geometry import Zyx
from neurovol.volume.compiled import library, strides
from neurovol.volume.stored import write_bytes
from neurovol.volume.workspace import reused

# the normalisation rule's percentiles (design, invariant 8)
LOW_PERCENTILE, HIGH_PERCENTILE = 1.0, 99.8


_PIECE = 2**18  # voxels counted at once: their 64-bit indices stay in the cache

# Counting takes as long as compressing, and percentiles of so many voxels are those of any number of them.
ENOUGH = 2**26  # voxels; of larger volumes every second, fourth, … row of a slice is counted
ENOUGH_TO_SHOW = 2**22  # of coarser levels, whose percentiles are where viewers begin and no more
_FEWEST = 16


def rows_counted(volume: Zyx, enough: int = ENOUGH) -> int:
    """Every how many rows of a slice are counted: all of a small volume, a sixteenth of a very large one.

    Row y of slice z is counted where y + z is a multiple of it: every row of the microscope's field comes up, and
    lines of one direction of its scan no more than those of the other.

    >>> rows_counted((100, 500, 500)), rows_counted((300, 1000, 1000)), rows_counted((2000, 10000, 10000))
    (1, 8, 16)
    """
    every = 1
    while every < _FEWEST and prod(volume) > every * enough:
        every *= 2
    return every


class Counter:
    """Counts the values of a volume in uint8 or uint16, box after box; the boxes' sum does not depend on their cut."""

    def __init__(self, channels: int, dtype: np.dtype[Any], every: int = 1, blocks: int = 1) -> None:
        """`every`: see rows_counted; `blocks` that lie side by side along x are counted apart."""
        if dtype not in (np.dtype(np.uint8), np.dtype(np.uint16)):
            raise ValueError(f"voxels are {dtype}; histograms are made of uint8 and uint16")
        self.every, self._dtype = every, dtype
        self.counts = np.zeros((channels, blocks, int(np.iinfo(dtype).max) + 1), np.int64)

    def add(self, array: NDArray[Any], start: Zyx = (0, 0, 0), widths: Sequence[int] | None = None) -> None:
        """(c, z, y, x) of a box that begins at `start` of the volume; how many voxels of a row are of each block."""
        z, y, _ = start
        widths = array.shape[-1:] if widths is None else widths
        if not self._add_compiled(array, z + y, widths):
            ends = list(accumulate(widths))
            for k, (end, width) in enumerate(zip(ends, widths, strict=True)):
                self._add_by_numpy(self.counts[:, k], array[..., end - width : end], z + y)

    def _add_compiled(self, array: NDArray[Any], first: int, widths: Sequence[int]) -> bool:
        compiled, apart = library(), strides(array)
        if compiled is None or apart is None or array.ndim != 4 or array.dtype != self._dtype:
            return False
        count = compiled.count_uint8 if array.itemsize == 1 else compiled.count_uint16
        _, blocks, values = self.counts.shape
        columns = (ctypes.c_ssize_t * blocks)(*widths), blocks
        for total, channel in zip(self.counts, array, strict=True):
            data, rows = channel.ctypes.data, channel.shape[:2]
            count(total.ctypes.data, values, data, *apart, *rows, *columns, self.every, first)
        return True

    def _add_by_numpy(self, counts: NDArray[np.int64], array: NDArray[Any], first: int) -> None:
        for total, channel in zip(counts, array, strict=True):
            if self.every == 1:
                self._count(total, [channel])
            else:
                planes = enumerate(channel, start=first)
                self._count(total, [plane[-i % self.every :: self.every] for i, plane in planes])

    def _count(self, total: NDArray[np.int64], parts: list[NDArray[Any]]) -> None:
        indices, held = reused("indices", (_PIECE,), np.dtype(np.intp)), 0
        for flat in (part.reshape(-1) for part in parts):
            for start in range(0, flat.size, _PIECE):
                piece = flat[start : start + _PIECE]
                if held + piece.size > _PIECE:
                    _add(total, indices[:held])
                    held = 0
                indices[held : held + piece.size] = piece
                held += piece.size
        _add(total, indices[:held])

    def histogram(self, block: int = 0) -> Histogram:
        """Of one of the blocks."""
        return Histogram.dense(self.counts[:, block])


def _add(total: NDArray[np.int64], indices: NDArray[np.intp]) -> None:
    found = np.bincount(indices)
    total[: found.size] += found


@dataclass(frozen=True, eq=False)
class Histogram:
    """Per channel the values that occur (ascending, zero left out) and how often; merging is exact."""

    values: tuple[NDArray[np.int64], ...]
    counts: tuple[NDArray[np.int64], ...]

    @classmethod
    def of(cls, array: NDArray[Any]) -> Histogram:
        """Of (c, z, y, x) in uint8 or uint16."""
        counter = Counter(len(array), array.dtype)
        counter.add(array)
        return counter.histogram()

    @property
    def channels(self) -> list[Histogram]:
        """Each channel's by itself."""
        return [Histogram((v,), (n,)) for v, n in zip(self.values, self.counts, strict=True)]

    @classmethod
    def dense(cls, channels: Iterable[NDArray[np.int64]]) -> Histogram:
        """From how often each value occurs, from 0 on."""
        values, counts = [], []
        for frequencies in channels:
            found = np.flatnonzero(frequencies[1:]) + 1
            values.append(found.astype(np.int64))
            counts.append(frequencies[found].astype(np.int64))
        return cls(tuple(values), tuple(counts))

    def percentile(self, q: float) -> tuple[int, ...]:
        """Per channel the smallest value such that at least q % of the non-zero voxels do not exceed it."""
        if not 0 <= q <= 100:
            raise ValueError(f"percentile {q} does not lie within 0 to 100")
        found = []
        for c, (values, counts) in enumerate(zip(self.values, self.counts, strict=True)):
            if not len(values):
                raise UserError(f"channel {c} of the sample is zero everywhere; leave it out of `channels`")
            cumulative = np.cumsum(counts)
            wanted = max(1, ceil(Fraction(str(q)) * int(cumulative[-1]) / 100))  # exact: 99.8 is no binary fraction
            found.append(int(values[np.searchsorted(cumulative, wanted)]))
        return tuple(found)

    def constants(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The normalisation constants: per channel the 1st, and per channel the 99.8th percentile."""
        return self.percentile(LOW_PERCENTILE), self.percentile(HIGH_PERCENTILE)

    def save(self, path: Path) -> None:
        """Write a small npz, whole or not at all; equal histograms give equal bytes."""
        save_levels([self], path)

    @classmethod
    def load(cls, path: Path) -> Histogram:
        """That of level 0 of what `save_levels` wrote; Failure where it is missing or damaged."""
        return load_levels(path)[0]


class Merging:
    """The sum of histograms, exact in whatever order they come."""

    def __init__(self, channels: int) -> None:
        self._total = [np.zeros(2**16, np.int64) for _ in range(channels)]

    def add(self, part: Histogram) -> None:
        if len(part.values) != len(self._total):
            raise ValueError(
                f"a histogram of {len(part.values)} channels cannot be merged with ones of {len(self._total)}"
            )
        for total, values, counts in zip(self._total, part.values, part.counts, strict=True):
            total[values] += counts

    def histogram(self) -> Histogram:
        return Histogram.dense(self._total)


def save_levels(levels: Sequence[Histogram], path: Path) -> None:
    """Write the histograms of levels 0, 1, … as one small npz, whole or not at all; equal ones give equal bytes."""
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **as_arrays(levels))
    try:
        write_bytes(path, content.getvalue())
    except OSError as error:
        raise Failure(f"{path}: the histogram could not be written: {error.strerror}") from error


def load_levels(path: Path) -> list[Histogram]:
    """What `save_levels` wrote; Failure where it is missing or damaged."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            found = from_arrays(dict(stored))
    except Exception as error:  # zip, zlib and numpy have errors of their own
        raise Failure(f"{path}: the histogram could not be read: {error}; run the conversion again") from error
    if not found:
        raise Failure(f"{path}: holds no histogram; run the conversion again")
    return found


def as_arrays(levels: Sequence[Histogram]) -> dict[str, NDArray[np.int64]]:
    """By name, the arrays of the histograms of levels 0, 1, …"""
    arrays: dict[str, NDArray[np.int64]] = {}
    for level, histogram in enumerate(levels):
        arrays |= {_key(level, "values", c): v for c, v in enumerate(histogram.values)}
        arrays |= {_key(level, "counts", c): n for c, n in enumerate(histogram.counts)}
    return arrays


def from_arrays(arrays: Mapping[str, NDArray[Any]]) -> list[Histogram]:
    """What `as_arrays` was given, of arrays among which there may be others."""
    found: list[Histogram] = []
    while _key(level := len(found), "values", 0) in arrays:
        channels = [c for c in range(len(arrays)) if _key(level, "values", c) in arrays]
        values, counts = (tuple(arrays[_key(level, what, c)] for c in channels) for what in ("values", "counts"))
        found.append(Histogram(values, counts))
    return found


def _key(level: int, what: str, channel: int) -> str:
    return f"{what}_{channel}" if level == 0 else f"level_{level}_{what}_{channel}"
