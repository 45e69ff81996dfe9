"""The crc32c of arrays that are not contiguous, and of bytes that lie one after the other from the crc32c of each."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from neurovol.volume.compiled import library, strides

_POLYNOMIAL = 0x82F63B78  # Castagnoli's, lowest bit first, as RFC 3720 has it


def extended(crc: int, array_ZYX: NDArray[Any]) -> int:
    """A crc32c continued by an array's bytes in C order; 0 is that of nothing. No copy is made of rows that lie apart.

    >>> voxels = np.arange(1000, dtype=np.uint16).reshape(10, 10, 10)
    >>> extended(0, voxels[:, :, 3:7]) == extended(0, voxels[:, :, 3:7].copy())
    True
    """
    apart = None if array_ZYX.flags.c_contiguous else strides(array_ZYX)
    compiled = library()
    if apart is not None and compiled is not None:
        total, (nz, ny, nx), size = ctypes.c_uint32(crc), array_ZYX.shape, array_ZYX.itemsize
        place = array_ZYX.ctypes.data
        if compiled.crc32c_rows(ctypes.byref(total), place, *(size * n for n in apart), nz, ny, size * nx):
            return total.value
    return int(google_crc32c.extend(crc, np.ascontiguousarray(array_ZYX)))


def extended_columns(crcs: list[int], array_ZYX: NDArray[Any], widths: Sequence[int]) -> None:
    """Several crc32c continued, each by its own columns of an array: so many voxels of each row, side by side.

    >>> voxels, crcs = np.arange(1000, dtype=np.uint16).reshape(10, 10, 10), [0, 0]
    >>> extended_columns(crcs, voxels, [7, 3])
    >>> crcs == [extended(0, voxels[..., :7]), extended(0, voxels[..., 7:])]
    True
    """
    apart, compiled, n = strides(array_ZYX), library(), len(crcs)
    if apart is not None and compiled is not None and n > 1:  # a single one may be contiguous, as `extended` likes it
        totals, sizes = (ctypes.c_uint32 * n)(*crcs), (ctypes.c_ssize_t * n)(*(w * array_ZYX.itemsize for w in widths))
        rows = *(array_ZYX.itemsize * k for k in apart), *array_ZYX.shape[:2]
        if compiled.crc32c_columns(totals, array_ZYX.ctypes.data, *rows, sizes, n):
            crcs[:] = totals
            return
    x = 0
    for k, width in enumerate(widths):
        crcs[k] = extended(crcs[k], array_ZYX[..., x : x + width])
        x += width


def joined(parts: Iterable[tuple[int, int]]) -> int:
    """The crc32c of the parts' bytes in a row; each part is its own crc32c and its number of bytes.

    Zeros behind a message multiply its remainder by x^8 each, and remainders add up (as in zlib's crc32_combine).

    >>> import google_crc32c
    >>> joined([(google_crc32c.value(b"neu"), 3), (google_crc32c.value(b"ron"), 3)]) == google_crc32c.value(b"neuron")
    True
    """
    total = 0
    for crc, size in parts:
        total = _times(total, _power(8 * size)) ^ crc
    return total


def _times(a: int, b: int) -> int:
    """The product of two polynomials modulo Castagnoli's; the highest bit is the coefficient of 1."""
    product = 0
    while b:
        if b & 0x80000000:
            product ^= a
        a = (a >> 1) ^ (_POLYNOMIAL if a & 1 else 0)
        b = (b << 1) & 0xFFFFFFFF
    return product


@lru_cache(maxsize=64)
def _power(n: int) -> int:
    """x^n modulo Castagnoli's polynomial."""
    result, square = 0x80000000, 0x40000000  # 1 and x
    while n:
        if n & 1:
            result = _times(result, square)
        square = _times(square, square)
        n >>= 1
    return result
