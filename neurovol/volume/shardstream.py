"""One shard written a layer of chunks at a time, from voxels that are held elsewhere.

    | layer of chunks | layer of chunks | …      each encoded, and on its way to disk, as it comes

So no block of voxels has to lie in memory as a whole, and what is encoded has just been read.
"""

from __future__ import annotations

from itertools import product
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from neurovol.geometry import Box, Receipt, Zyx, ceil_div
from neurovol.volume.crc import extended, joined
from neurovol.volume.shardfile import Codec, ShardEncoder
from neurovol.volume.writeback import start_writeback


class ShardStream:
    """Takes the voxels of one shard in order of z, all channels at once; `finish` gives a receipt, if one is wanted."""

    def __init__(
        self,
        file: BinaryIO,
        box: Box,
        channels: int,
        dtype: np.dtype[Any],
        chunk: Zyx,
        shard: Zyx,
        codec: Codec,
        durable: bool = True,
    ) -> None:
        """Write to `file`, open and empty, the voxels of `box`."""
        self._file, self.box, self._durable = file, box, durable
        self._itemsize, self.chunk = dtype.itemsize, chunk
        counts = tuple(s // c for s, c in zip(shard, chunk, strict=True))
        self._encoder = ShardEncoder((channels, *counts), chunk, dtype.itemsize, codec)
        self._summed = self._written = 0  # slices
        self._crc32c = [0] * channels

    def sum_up(self, slab_CZYX: NDArray[Any]) -> None:
        """The next slices for a receipt: (c, z, y, x), as wide as the box, any number of them."""
        self._crc32c = [extended(crc, channel) for crc, channel in zip(self._crc32c, slab_CZYX, strict=True)]
        self._summed += slab_CZYX.shape[1]

    def write(self, layer_CZYX: NDArray[Any]) -> None:
        """The next slices to the file: as many as a chunk is deep, or what the box has left."""
        left = self.box.shape[0] - self._written
        if layer_CZYX.shape[1:] != (min(left, self.chunk[0]), *self.box.shape[1:]):
            raise ValueError(f"{layer_CZYX.shape} (c, z, y, x) is no layer of chunks {self.chunk}; {left} slices left")
        _, cy, cx = self.chunk
        _, ny, nx = ceil_div(self.box.shape, self.chunk)
        z = self._written // self.chunk[0]
        for c, y, x in product(range(len(layer_CZYX)), range(ny), range(nx)):
            cell = layer_CZYX[c, :, y * cy : (y + 1) * cy, x * cx : (x + 1) * cx]
            self._file.writelines(self._encoder.chunk((c, z, y, x), cell))
        self._written += layer_CZYX.shape[1]
        if self._durable:
            start_writeback(self._file)

    def finish(self) -> Receipt | None:
        """Write the index; the receipt of what was summed up, None where nothing was."""
        depth = self.box.shape[0]
        if self._written != depth or self._summed not in (0, depth):
            raise ValueError(f"of {depth} slices of a shard {self._summed} were summed up, {self._written} written")
        self._file.writelines(self._encoder.index())
        size = self.box.size * self._itemsize
        return Receipt(self.box, joined([(crc, size) for crc in self._crc32c])) if self._summed else None
