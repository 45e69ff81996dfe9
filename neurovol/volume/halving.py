"""Means of windows by halve.c, where it is compiled."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurovol.geometry import Zyx
from neurovol.volume.compiled import library, strides


def halve(array: NDArray[Any], factors: Zyx, out: NDArray[Any]) -> bool:
    """Means of whole windows of 1 or 2 × 1 or 2 × 2 voxels, rounded half up; False, and nothing done, if it cannot.

    `array` (…, z, y, x) of uint8 or uint16 holds whole windows alone, `out` of the same type a voxel for each, or more.
    """
    compiled = library()
    apart = strides(array), strides(out)
    if compiled is None or apart[0] is None or apart[1] is None:
        return False
    function = compiled.halve_uint8 if array.itemsize == 1 else compiled.halve_uint16
    shape = (n // f for n, f in zip(array.shape[-3:], factors, strict=True))
    numbers = *shape, *factors[:2]
    for place in np.ndindex(array.shape[:-3]):
        function(array[place].ctypes.data, *apart[0], out[place].ctypes.data, *apart[1], *numbers)
    return True
