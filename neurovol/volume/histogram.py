"""Exact histograms of non-zero voxels, made per block and merged: what intensities are normalised by.

Zeros are left out: they are the empty surroundings of the tissue, up to half of a volume.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurovol.errors import Failure, UserError

# the normalisation rule's percentiles (design, invariant 8)
LOW_PERCENTILE, HIGH_PERCENTILE = 1.0, 99.8


_PIECE = 2**17  # voxels counted at once: their 64-bit indices stay in the cache


class Counter:
    """Counts the values of (c, z, y, x) in uint8 or uint16, piece after piece."""

    def __init__(self, channels: int, dtype: np.dtype[Any]) -> None:
        if dtype not in (np.dtype(np.uint8), np.dtype(np.uint16)):
            raise ValueError(f"voxels are {dtype}; histograms are made of uint8 and uint16")
        self.counts = np.zeros((channels, int(np.iinfo(dtype).max) + 1), np.int64)
        self._indices = np.empty(_PIECE, np.intp)

    def add(self, array: NDArray[Any]) -> None:
        for total, channel in zip(self.counts, array, strict=True):
            flat = channel.reshape(-1)
            for start in range(0, flat.size, _PIECE):
                piece = flat[start : start + _PIECE]
                self._indices[: piece.size] = piece
                found = np.bincount(self._indices[: piece.size])
                total[: found.size] += found

    def histogram(self) -> Histogram:
        return Histogram.dense(self.counts)


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

    @classmethod
    def merged(cls, parts: Iterable[Histogram], channels: int) -> Histogram:
        """The histogram of the voxels of all parts, of which one is held at a time."""
        total = [np.zeros(2**16, np.int64) for _ in range(channels)]
        for part in parts:
            if len(part.values) != channels:
                raise ValueError(f"a histogram of {len(part.values)} channels cannot be merged with ones of {channels}")
            for c in range(channels):
                total[c][part.values[c]] += part.counts[c]
        return cls.dense(total)

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
        arrays = {f"values_{c}": v for c, v in enumerate(self.values)}
        arrays |= {f"counts_{c}": n for c, n in enumerate(self.counts)}
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            with partial.open("wb") as file:
                np.savez_compressed(file, allow_pickle=False, **arrays)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise Failure(f"{path}: the histogram could not be written: {error.strerror}") from error

    @classmethod
    def load(cls, path: Path) -> Histogram:
        """What `save` wrote; Failure where it is missing or damaged."""
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                channels = range(len(stored.files) // 2)
                return cls(
                    tuple(stored[f"values_{c}"] for c in channels), tuple(stored[f"counts_{c}"] for c in channels)
                )
        except Exception as error:  # zip, zlib and numpy have errors of their own
            raise Failure(f"{path}: the histogram could not be read: {error}; run the conversion again") from error
