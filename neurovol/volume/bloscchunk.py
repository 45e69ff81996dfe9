"""Chunks as Blosc has them, by blosc_lz4.c where that is compiled and the chunk suits it; the bytes are Blosc's own."""

from __future__ import annotations

import ctypes
from functools import cache
from math import prod
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from neurovol.geometry import Zyx
from neurovol.volume.compiled import library, strides
from neurovol.volume.workspace import reused

_VERSION = "c-blosc 1.21"  # whose bytes blosc_lz4.c makes


@cache
def _lz4() -> ctypes.c_void_p | None:
    """LZ4's own function, out of the very library that Blosc calls; None where it does not show."""
    if not imagecodecs.blosc_version().startswith(_VERSION):
        return None
    try:
        from imagecodecs import _blosc

        return ctypes.cast(ctypes.CDLL(_blosc.__file__).LZ4_compress_fast, ctypes.c_void_p)
    except (ImportError, AttributeError, OSError):
        return None


def blosc_lz4(voxels: NDArray[Any], chunk: Zyx, level: int, block_bytes: int, out: bytearray) -> memoryview | None:
    """A chunk of uint16, bitshuffled and compressed into `out`; None, and nothing that counts there, if Blosc has to.

    `voxels` (z, y, x), which may be part of a larger array, is what there is of the chunk; the rest is 0.
    """
    compiled, compress, apart = library(), _lz4(), strides(voxels)
    if compiled is None or compress is None or apart is None or voxels.dtype != np.uint16 or not 1 <= level <= 9:
        return None
    chunk_bytes = 2 * prod(chunk)
    # as Blosc takes what is asked for, where voxels are compressed by their low and their high bytes apart
    block_bytes = min(max(2 * min(block_bytes, 2**18), 2**16), chunk_bytes)
    if len(out) < chunk_bytes + 16 + 12 * -(-chunk_bytes // block_bytes):
        return None
    scratch = reused("shuffled", (block_bytes,), np.dtype(np.uint8))
    target = (ctypes.c_char * len(out)).from_buffer(out)
    # Blosc's level is the less LZ4 is sped up
    n = compiled.blosc_lz4_uint16(
        voxels.ctypes.data,
        *apart,
        *voxels.shape,
        *chunk,
        block_bytes,
        10 - level,
        compress,
        scratch.ctypes.data,
        target,
    )
    return memoryview(out)[:n] if n else None
