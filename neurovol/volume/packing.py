"""Chunks on their way into a shard: filled with slices as these come, and compressed once they are whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any, Protocol

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from neurovol.geometry import Zyx

Bytes = NDArray[np.uint8]
CRC_BYTES = 4
_GLANCE = 4096  # bytes


class Packer(Protocol):
    """How chunks of one shape and codec are filled and compressed.

    `memory` is that of a layer of them, (y, x, bytes of a chunk), aligned to 64 bytes and of any content at first.
    """

    def place(self, voxels_ZYX: NDArray[Any], memory: Bytes, z: int) -> None:
        """Slices, which may be part of a larger array, into the layer from its slice `z` on.

        What the last chunks have beyond them is 0.
        """

    def blank(self, memory: Bytes, z: int) -> None:
        """The layer is 0 from its slice `z` on."""

    def compress(self, chunks: Bytes, out: memoryview) -> list[int]:
        """Whole ones, (n, bytes of a chunk), one after the other into `out`, and the crc32c of each behind it.

        As many as the room is sure to do for, which is `most_bytes` or more: one, or several. How much each takes
        there; 0 of one that is 0 throughout, of which nothing is written. Other threads run meanwhile.
        """

    @property
    def most_bytes(self) -> int:
        """That a chunk may take, compressed, with its crc32c."""


@dataclass(frozen=True)
class Copied:
    """Voxels are kept as they are, each chunk by itself, as all codecs take them."""

    chunk: Zyx
    dtype: np.dtype[Any]
    encode: Callable[..., Any]  # of voxels, to `out`
    most_bytes: int  # with its crc32c

    def place(self, voxels_ZYX: NDArray[Any], memory: Bytes, z: int) -> None:
        _, cy, cx = self.chunk
        depth = voxels_ZYX.shape[0]
        for y, x in product(*map(range, memory.shape[:2])):
            part = voxels_ZYX[:, y * cy : (y + 1) * cy, x * cx : (x + 1) * cx]
            cell = memory[y, x].view(self.dtype).reshape(self.chunk)[z : z + depth]
            if part.shape != cell.shape:
                cell.fill(0)
            cell[:, : part.shape[1], : part.shape[2]] = part

    def blank(self, memory: Bytes, z: int) -> None:
        memory[..., z * (prod(self.chunk[1:]) * self.dtype.itemsize) :] = 0

    def compress(self, chunks: Bytes, out: memoryview) -> list[int]:
        chunk = chunks[0]
        if not (chunk[:_GLANCE].any() or chunk.any()):  # most hold something at once, or nothing at all
            return [0]
        voxels = chunk.view(self.dtype)  # of bytes Blosc would shuffle each voxel's two apart
        n = len(self.encode(voxels, out=out[: self.most_bytes - CRC_BYTES]))
        out[n : n + CRC_BYTES] = crc32c(out[:n])
        return [n + CRC_BYTES]


def crc32c(data: bytes | memoryview) -> bytes:
    """As it stands behind what it is of."""
    return int(google_crc32c.value(np.frombuffer(data, np.uint8))).to_bytes(CRC_BYTES, "little")
