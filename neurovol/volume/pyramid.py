"""Coarser levels of a volume: exact means or maxima of windows, the same however the volume is cut into blocks."""

from __future__ import annotations

import sys
from itertools import product
from math import prod
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from neurovol.geometry import Zyx, ceil_div, zyx
from neurovol.volume.halving import halve

_TWICE: dict[Any, np.dtype[Any]] = {np.dtype(np.uint8): np.dtype(np.uint16), np.dtype(np.uint16): np.dtype(np.uint32)}


def downsample(
    array: NDArray[Any], factors: Zyx, how: Literal["mean", "max"], out: NDArray[Any] | None = None
) -> NDArray[Any]:
    """(…, z, y, x) of unsigned integers, coarser by `factors`; same dtype; into `out` where one is given.

    The mean is exact and rounds half up; at an odd far end it is taken over the voxels that exist.
    """
    if not np.issubdtype(array.dtype, np.unsignedinteger):
        raise ValueError(f"voxels are {array.dtype}; levels are made of unsigned integers only")
    if out is None:
        out = np.empty((*array.shape[:-3], *ceil_div(zyx(array.shape[-3:]), factors)), array.dtype)
    if how == "max":
        out[...] = _folded(array, factors, np.maximum, array.dtype)
    elif array.dtype in _TWICE and max(factors) <= 2 and factors[2] == 2 and sys.byteorder == "little":
        _halved(array, factors, out)
    else:
        out[...] = _mean(array, factors)
    return out


def _mean(array: NDArray[Any], factors: Zyx) -> NDArray[Any]:
    """The mean for any factors and any far end."""
    largest_sum = 2 * int(np.iinfo(array.dtype).max) * prod(factors) + prod(factors)
    if largest_sum >= 2**64:
        raise ValueError(f"factors {factors} are too large for an exact mean of {array.dtype}")
    wide = np.dtype(np.uint32 if largest_sum < 2**32 else np.uint64)
    sums = _folded(array, factors, np.add, wide)
    counts = _window_sizes(zyx(array.shape[-3:]), factors, wide)
    sums *= 2
    sums += counts
    sums //= 2 * counts
    return sums.astype(array.dtype)


def _halved(array: NDArray[Any], factors: Zyx, out: NDArray[Any]) -> None:
    """The mean for halvings: whole windows quickly, the far ends that hold partial ones by the general way."""
    z, y, x = (slice(n // f * f) for n, f in zip(array.shape[-3:], factors, strict=True))
    whole = array[..., z, y, x]
    if not halve(whole, factors, out):
        _halve_whole(whole, factors, out)
    for axis, f in zip((-3, -2, -1), factors, strict=True):
        if array.shape[axis] % f:
            last = [array.shape[axis] - 1]
            far = _mean(array.take(last, axis), factors)
            np.moveaxis(out, axis, 0)[-1:] = np.moveaxis(far, axis, 0)


def _halve_whole(array: NDArray[Any], factors: Zyx, out: NDArray[Any]) -> None:
    """What halve.c does, by numpy: plane by plane so that all intermediate sums stay in the cache.

    Two neighbours along x are read as one integer of twice the width, whose halves are added: contiguous
    arithmetic, several times as fast as strided.
    """
    fz, fy, _ = factors
    nz, ny, nx = (n // f for n, f in zip(array.shape[-3:], factors, strict=True))
    if not nz * ny * nx:
        return
    narrow, wide = array.dtype, _TWICE[array.dtype]
    shift = (2 * fz * fy).bit_length() - 1
    half = 1 << shift >> 1
    low = np.iinfo(narrow).max
    dim = (int(low) - half) >> shift  # the largest value of which a window's sum does not overflow
    memory = _Memory(np.empty((ny, 2 * nx), narrow), *(np.empty((ny * fy, nx), wide) for _ in range(2)))
    for place in np.ndindex(array.shape[:-3]):
        stack, target = array[place], out[place]
        for z in range(nz):
            planes = stack[z * fz : (z + 1) * fz]
            if planes.max() <= dim:
                sums, below = _narrow_sums(planes, fy, memory), 8 * narrow.itemsize
            else:
                sums, below = _wide_sums(planes, fy, memory), 0
            np.add(sums, half << below, out=sums)
            np.right_shift(sums, shift + below, out=sums)
            target[z, :ny, :nx] = sums


class _Memory(NamedTuple):
    """For sums of one plane, taken again for the next."""

    narrow: NDArray[Any]
    wide: NDArray[Any]
    more: NDArray[Any]


def _narrow_sums(planes: NDArray[Any], fy: int, memory: _Memory) -> NDArray[Any]:
    """Sums of windows that fit the voxels' own type, in the upper halves of what is returned.

    Rows are added as they are; then one multiplication adds each pair's lower neighbour to its upper one, in place.
    """
    sums = memory.narrow
    rows = [plane[k::fy] for plane in planes for k in range(fy)]
    np.add(rows[0], rows[1], out=sums) if len(rows) > 1 else np.copyto(sums, rows[0])
    for row in rows[2:]:
        np.add(sums, row, out=sums)
    pairs = sums.view(memory.wide.dtype)
    np.multiply(pairs, (1 << 8 * sums.itemsize) + 1, out=pairs)
    return pairs


def _wide_sums(planes: NDArray[Any], fy: int, memory: _Memory) -> NDArray[Any]:
    """Sums of windows of any values."""
    _, pairs, part = memory
    ny = len(pairs) // fy
    total = np.zeros((ny, pairs.shape[1]), pairs.dtype)
    for held in planes:
        plane = np.ascontiguousarray(held).view(pairs.dtype)
        np.right_shift(plane, planes.itemsize * 8, out=pairs)
        np.bitwise_and(plane, np.iinfo(planes.dtype).max, out=part)
        np.add(pairs, part, out=pairs)
        rows = pairs if fy == 1 else np.add(pairs[0::2], pairs[1::2], out=part[:ny])
        np.add(total, rows, out=total)
    return total


def _folded(array: NDArray[Any], factors: Zyx, combine: np.ufunc, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Each window of `factors` voxels combined to one, partial windows included; 0 is neutral."""
    shape = zyx(array.shape[-3:])
    out = np.zeros((*array.shape[:-3], *ceil_div(shape, factors)), dtype)
    for offsets in product(*(range(min(f, n)) for f, n in zip(factors, shape, strict=True))):
        z, y, x = (slice(o, None, f) for o, f in zip(offsets, factors, strict=True))
        part = array[..., z, y, x]
        nz, ny, nx = part.shape[-3:]
        target = out[..., :nz, :ny, :nx]
        combine(target, part, out=target, dtype=dtype)
    return out


def _window_sizes(shape: Zyx, factors: Zyx, dtype: np.dtype[Any]) -> NDArray[Any]:
    """(z, y, x): how many voxels each window really holds."""
    z, y, x = (np.minimum(f, n - np.arange(0, n, f)).astype(dtype) for n, f in zip(shape, factors, strict=True))
    sizes: NDArray[Any] = z[:, None, None] * y[:, None] * x
    return sizes
