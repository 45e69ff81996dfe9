"""Random numbers keyed by place: any of them can be had without those before it.

Every number is a hash of (seed, trait, position on a lattice that never moves), so a box gets the
same values whatever else is read. On voxel arrays the phantom uses only operations that IEEE 754
rounds correctly (+ - × ÷ √, comparisons): exp, sin or a BLAS product may differ in the last bit with
the length of the array, and so with the box.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from neurovol.geometry import Box, Zyx

Floats = NDArray[np.float32]

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_AXIS_STEP = (0xD1342543DE82EF95, 0xAF251AF3B0F025B5, 0xC2B2AE3D27D4EB4F)
# 1 / standard deviation of uniform(-1, 1) values interpolated by quadratic B-splines: each axis keeps 11/20 of the
# variance on average over the phases (the integral of the squared weights)
_UNIT_3D = float((3 * (20 / 11) ** 3) ** 0.5)
_UNIT_2D = float((3 * (20 / 11) ** 2) ** 0.5)


def mixed(h: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014), elementwise."""
    h = h ^ (h >> np.uint64(30))
    h *= np.uint64(0xBF58476D1CE4E5B9)
    h ^= h >> np.uint64(27)
    h *= np.uint64(0x94D049BB133111EB)
    h ^= h >> np.uint64(31)
    return h


def trait_key(seed: int, trait: str) -> np.uint64:
    """One number for a trait of a sample."""
    start = (seed * _GOLDEN + crc32(trait.encode()) * _AXIS_STEP[0] + 1) & _MASK
    return np.uint64(mixed(np.array([start], np.uint64))[0])


def hashes_at(seed: int, trait: str, *coordinates: NDArray[np.int64]) -> NDArray[np.uint64]:
    """A hash for every position; coordinates along two or three axes, which broadcast."""
    h = np.full((1,) * coordinates[0].ndim, trait_key(seed, trait))
    for step, along in zip(_AXIS_STEP, coordinates, strict=False):
        h = mixed(h + along.astype(np.uint64) * np.uint64(step))
    return h


def hashes(seed: int, trait: str, places: Sequence[NDArray[np.int64]]) -> NDArray[np.uint64]:
    """The same for every position of the grid that the places along the axes span."""
    return hashes_at(seed, trait, *np.ix_(*places))


def uniforms(h: NDArray[np.uint64], count: int) -> NDArray[np.float64]:
    """`count` numbers in (0, 1) per hash: shape (hashes, count)."""
    steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
    return ((mixed(h.reshape(-1, 1) + steps) >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


@lru_cache(maxsize=1)
def _normal_quantiles() -> Floats:
    return ndtri((np.arange(1 << 16) + 0.5) / (1 << 16)).astype(np.float32)


def row_keys(seed: int, trait: str, box: Box) -> NDArray[np.uint32]:
    """A key for each row of voxels of the box: shape (z, y)."""
    z, y, _ = (np.arange(a, b) for a, b in box.pairs)
    return (hashes(seed, trait, (z, y)) >> np.uint64(32)).astype(np.uint32)


def voxel_normals(keys: NDArray[np.uint32], start: int, count: int) -> Floats:
    """Standard normal numbers of one slice, (y, x), from its row keys and the absolute x of its first column.

    The hash is lowbias32 (Wellons 2018); 2^16 quantiles, so nothing lies beyond 4.3 sigma.
    """
    x = np.arange(start, start + count).astype(np.uint32) * np.uint32(0x9E3779B9)
    h = keys[:, None] + x
    spare = np.empty_like(h)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        np.right_shift(h, np.uint32(shift), out=spare)
        h ^= spare
        h *= np.uint32(factor)
    h >>= np.uint32(16)  # the last xor of the high half does not change it
    return _normal_quantiles().take(h)


def _knots(start: int, stop: int, spacing: int) -> tuple[NDArray[np.int64], NDArray[np.int64], list[Floats]]:
    """The lattice positions that voxels start..stop need, each voxel's first one, and the three weights."""
    i = np.arange(start, stop)
    first = start // spacing - 1
    places = np.arange(first, (stop - 1) // spacing + 2)
    return places, i // spacing - 1 - first, _weights(i, spacing)


def _weights(i: NDArray[np.int64], spacing: int) -> list[Floats]:
    """Of the three lattice values around each voxel: the quadratic B-spline."""
    f = (2 * (i % spacing) + 1) / (2 * spacing)
    weights = [0.5 * (1 - f) * (1 - f), 0.75 - (f - 0.5) * (f - 0.5), 0.5 * f * f]
    return [w.astype(np.float32) for w in weights]


def _spread(values: Floats, axis: int, at: NDArray[np.int64], weights: list[Floats]) -> Floats:
    """Interpolate along an axis: three lattice values per voxel."""
    shape = [-1 if a == axis else 1 for a in range(values.ndim)]
    parts = [values.take(at + k, axis=axis) * w.reshape(shape) for k, w in enumerate(weights)]
    return np.asarray(parts[0] + parts[1] + parts[2])


def noise(seed: int, trait: str, box: Box, spacing: Zyx) -> Floats:
    """Smooth noise, (z, y, x), mean 0, variance 1: lattice values every `spacing` voxels, quadratic B-splines between.

    Quadratic splines, for linear interpolation shows its lattice and cubic costs a third more.
    """
    knots = [_knots(a, b, s) for (a, b), s in zip(box.pairs, spacing, strict=True)]
    lattice = _signed(hashes(seed, trait, [k[0] for k in knots]), _UNIT_3D)
    for axis in (2, 1):  # the slow axis last: there whole slices are added
        lattice = _spread(lattice, axis, *knots[axis][1:])
    _, at, weights = knots[0]
    out = np.empty(box.shape, np.float32)
    spare = np.empty(box.shape[1:], np.float32)
    for z, k in enumerate(at.tolist()):
        np.multiply(lattice[k], weights[0][z], out=out[z])
        for tap in (1, 2):
            out[z] += np.multiply(lattice[k + tap], weights[tap][z], out=spare)
    return out


def noise_2d(seed: int, trait: str, pairs: Sequence[tuple[int, int]], spacing: tuple[int, int]) -> Floats:
    """The same in a plane."""
    knots = [_knots(a, b, s) for (a, b), s in zip(pairs, spacing, strict=True)]
    lattice = _signed(hashes(seed, trait, [k[0] for k in knots]), _UNIT_2D)
    for axis in (1, 0):
        lattice = _spread(lattice, axis, *knots[axis][1:])
    return lattice


def noise_2d_at(
    seed: int, trait: str, rows: NDArray[np.int64], columns: NDArray[np.int64], spacing: tuple[int, int]
) -> NDArray[np.float64]:
    """That noise at single positions, (n,), but for float32's rounding."""
    out = np.zeros(len(rows))
    sides = [(i // s - 1, _weights(i, s)) for i, s in zip((rows, columns), spacing, strict=True)]
    for j, k in product(range(3), repeat=2):
        values = _signed(hashes_at(seed, trait, sides[0][0] + j, sides[1][0] + k), _UNIT_2D)
        out += values * sides[0][1][j] * sides[1][1][k]
    return out


def _signed(h: NDArray[np.uint64], unit: float) -> Floats:
    """Uniform in (-1, 1), times `unit`; from the upper 24 bits, all that float32 holds."""
    return ((h >> np.uint64(40)).astype(np.float32) - np.float32(2**23)) * np.float32(unit / 2**23)
