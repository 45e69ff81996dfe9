"""The compiled means of halve.c: found where a C compiler was at installation (deploy/hatch_build.py)."""

from __future__ import annotations

import ctypes
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurovol.geometry import Zyx

_SOURCE = Path(__file__).with_name("halve.c")


@cache
def library() -> ctypes.CDLL | None:
    """Compiled from the very source that lies here; None where there is none such, or it is another processor's."""
    name = f"halve-{hashlib.sha256(_SOURCE.read_bytes()).hexdigest()[:16]}.so"
    try:
        found = ctypes.CDLL(str(_SOURCE.with_name(name)))
    except OSError:
        return None
    for function in (found.halve_uint8, found.halve_uint16):
        one: list[Any] = [ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_ssize_t]
        function.argtypes = one * 2 + [ctypes.c_ssize_t] * 5
        function.restype = None
    return found


def halve(array: NDArray[Any], factors: Zyx, out: NDArray[Any]) -> bool:
    """Means of whole windows of 1 or 2 × 1 or 2 × 2 voxels, rounded half up; False, and nothing done, if it cannot.

    `array` (…, z, y, x) of uint8 or uint16 holds whole windows alone, `out` of the same type a voxel for each, or more.
    """
    compiled, size = library(), array.itemsize
    if compiled is None or not all(a.flags.aligned and a.strides[-1] == size for a in (array, out)):
        return False
    function = getattr(compiled, f"halve_{array.dtype.name}")
    shape = (n // f for n, f in zip(array.shape[-3:], factors, strict=True))
    numbers = *shape, *factors[:2]
    for place in np.ndindex(array.shape[:-3]):
        stacks = array[place], out[place]
        function(*(number for s in stacks for number in (s.ctypes.data, *(n // size for n in s.strides[:2]))), *numbers)
    return True
