"""Chunks as Blosc has them, by blosc_lz4.c where that is compiled and they suit it; the bytes are Blosc's own."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from math import lcm, prod
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from neurovol.geometry import Zyx
from neurovol.volume.compiled import library, strides
from neurovol.volume.packing import CRC_BYTES, Bytes
from neurovol.volume.workspace import LINE

_VERSION = "c-blosc 1.21"  # whose bytes blosc_lz4.c makes
_TILE = 512  # voxels whose bits fill a cache line each


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


@dataclass(frozen=True)
class Shuffled:
    """Chunks of uint16, bitshuffled as their slices come: one pass over voxels that are in the processor's cache."""

    chunk: Zyx
    level: int
    block: int  # voxels compressed at once
    rows: int  # shuffled at once
    compiled: ctypes.CDLL
    lz4: ctypes.c_void_p
    newest: bool = True  # instructions, where the processor has them; the bytes are the same

    def place(self, voxels_ZYX: NDArray[Any], memory: Bytes, z: int) -> None:
        """As Packer has it."""
        if (apart := strides(voxels_ZYX)) is None:
            voxels_ZYX = np.ascontiguousarray(voxels_ZYX)
            apart = voxels_ZYX.shape[1] * voxels_ZYX.shape[2], voxels_ZYX.shape[2]
        depth, *rows_and_voxels = voxels_ZYX.shape
        self._shuffle(memory, voxels_ZYX.ctypes.data, *apart, depth, *rows_and_voxels, z, depth)

    def blank(self, memory: Bytes, z: int) -> None:
        """As Packer has it."""
        depth, cy, cx = self.chunk
        y, x, _ = memory.shape
        self._shuffle(memory, None, 0, 0, 0, y * cy, x * cx, z, depth - z)

    def _shuffle(self, memory: Bytes, *slices: int | None) -> None:
        size, begin = memory.shape[2], memory.ctypes.data
        if begin % LINE:  # C writes whole lines past the cache, and would end the process
            raise ValueError(f"a layer's memory begins {begin % LINE} bytes after a multiple of {LINE}")
        sizes = *self.chunk[1:], self.rows, self.block, size
        self.compiled.shuffle_slices_uint16(*slices, *sizes, begin, self.newest)

    @property
    def most_bytes(self) -> int:
        """As Packer has it."""
        size = 2 * prod(self.chunk)
        return size + 16 + 6 * size // self.block + CRC_BYTES

    def compress(self, chunks: Bytes, out: memoryview) -> list[int]:
        """As Packer has it."""
        count, size = chunks.shape
        taken = (ctypes.c_int64 * count)()
        speed = 10 - self.level  # Blosc's level is the less LZ4 is sped up
        target = ctypes.byref(ctypes.c_char.from_buffer(out))
        room = self.most_bytes, len(out)
        n: int = self.compiled.blosc_lz4_uint16(
            chunks.ctypes.data, count, size, self.block, speed, self.lz4, target, *room, taken
        )
        return list(taken[:n])


def shuffled(chunk: Zyx, level: int, block_bytes: int) -> Shuffled | None:
    """For chunks of uint16, so many bytes of them compressed at once; None where Blosc has to do it."""
    compiled, lz4, (_, cy, cx), size = library(), _lz4(), chunk, 2 * prod(chunk)
    # as Blosc takes what is asked for, where voxels are compressed by their low and their high bytes apart
    block = min(max(2 * min(block_bytes, 2**18), 2**16), size) // 2
    rows = lcm(_TILE, cx) // cx
    if compiled is None or lz4 is None or not 1 <= level <= 9 or not compiled.shuffles(cy, cx, rows, block, size):
        return None
    return Shuffled(chunk, level, block, rows, compiled, lz4)
