"""Coarser levels of a volume: each is made, block by block, from the level below."""

from __future__ import annotations

from itertools import product
from math import prod
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from neurovol.geometry import Zyx, ceil_div, zyx


def downsample(array: NDArray[Any], factors: Zyx, how: Literal["mean", "max"]) -> NDArray[Any]:
    """(…, z, y, x) of unsigned integers, coarser by `factors`; same dtype.

    The mean is exact and rounds half up; at an odd far end it is taken over the voxels that exist.
    """
    if not np.issubdtype(array.dtype, np.unsignedinteger):
        raise ValueError(f"voxels are {array.dtype}; levels are made of unsigned integers only")
    if how == "max":
        return _folded(array, factors, np.maximum, array.dtype)
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
