"""Loads what is written in C beside this file, compiled where a C compiler was at installation (deploy/hatch_build.py).

Each of these functions has a slower way beside it that gives the same to the bit, and is taken where there is none.
"""

from __future__ import annotations

import ctypes
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

_POINTER, _SIZE = ctypes.c_void_p, ctypes.c_ssize_t
_HALVE = [_POINTER, _SIZE, _SIZE] * 2 + [_SIZE] * 5, None
_COUNT = [_POINTER, _SIZE, _POINTER] + [_SIZE] * 4 + [_POINTER] + [_SIZE] * 3, None
_FUNCTIONS: dict[str, tuple[list[Any], Any]] = {
    "halve_uint8": _HALVE,
    "halve_uint16": _HALVE,
    "shuffles": ([_SIZE] * 5, ctypes.c_int),
    "shuffle_slices_uint16": ([_POINTER] + [_SIZE] * 12 + [_POINTER, ctypes.c_int], None),
    "blosc_lz4_uint16": ([_POINTER] + [_SIZE] * 3 + [ctypes.c_int] + [_POINTER] * 2 + [_SIZE] * 2 + [_POINTER], _SIZE),
    "count_uint8": _COUNT,
    "count_uint16": _COUNT,
    "crc32c_rows": ([_POINTER, _POINTER] + [_SIZE] * 5, ctypes.c_int),
    "crc32c_columns": ([_POINTER, _POINTER] + [_SIZE] * 4 + [_POINTER, _SIZE], ctypes.c_int),
}


@cache
def library() -> ctypes.CDLL | None:
    """Compiled from the very sources that lie here; None where there is none such, or it is another processor's."""
    here = Path(__file__).parent
    sources = b"".join(file.read_bytes() for file in sorted(here.glob("*.c")))
    try:
        found = ctypes.CDLL(str(here / f"compiled-{hashlib.sha256(sources).hexdigest()[:16]}.so"))
    except OSError:
        return None
    for name, (arguments, result) in _FUNCTIONS.items():
        function = getattr(found, name)
        function.argtypes, function.restype = arguments, result
    return found


def strides(array: NDArray[Any]) -> tuple[int, int] | None:
    """Voxels of (…, z, y, x) from one plane to the next, and from one row; None where it is not made of whole rows."""
    size = array.itemsize
    plane, row, voxel = array.strides[-3:]
    whole = voxel == size and array.flags.aligned and plane % size == 0 and row % size == 0
    return (plane // size, row // size) if whole else None
