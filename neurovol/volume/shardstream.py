"""One shard written a layer of chunks at a time, from slices as they come.

    slices  →  | layer of chunks, being filled |  →  compressed, and on its way to disk, when it is whole  →  next layer

So no block of voxels has to lie in memory as a whole.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurovol.geometry import Box, Receipt, Zyx, ceil_div
from neurovol.volume.crc import extended, joined
from neurovol.volume.direct import Output
from neurovol.volume.shardfile import Codec, ShardEncoder
from neurovol.volume.workspace import reused


class ShardStream:
    """Takes the voxels of one shard in order of z, all channels at once; `finish` gives a receipt, if one is wanted."""

    def __init__(
        self,
        file: Output,
        name: str,
        box: Box,
        channels: int,
        dtype: np.dtype[Any],
        chunk: Zyx,
        shard: Zyx,
        codec: Codec,
    ) -> None:
        """Write to `file`, open and empty, the voxels of `box`; `name` is of no other stream open on this thread."""
        self._file, self.box = file, box
        self._itemsize, self._depth = dtype.itemsize, chunk[0]
        counts = tuple(s // c for s, c in zip(shard, chunk, strict=True))
        self._packer = codec.packer(chunk, dtype)
        self._encoder = ShardEncoder(file, (channels, *counts), self._packer)
        layer = (channels, *ceil_div(box.shape, chunk)[1:], prod(chunk) * dtype.itemsize)
        self._layer = reused(f"layer of {name}", layer, np.dtype(np.uint8))
        self._summed = self._taken = 0  # slices
        self._crc32c = [0] * channels

    def sum_up(self, slab_CZYX: NDArray[Any]) -> None:
        """The next slices for a receipt: (c, z, y, x), as wide as the box, any number of them."""
        self._crc32c = [extended(crc, channel) for crc, channel in zip(self._crc32c, slab_CZYX, strict=True)]
        self._summed += slab_CZYX.shape[1]

    def take(self, slab_CZYX: NDArray[Any]) -> None:
        """The next slices for the file: (c, z, y, x), as wide as the box, any number of them."""
        channels, slices, *rows = slab_CZYX.shape
        left = self.box.shape[0] - self._taken
        if (channels, *rows) != (len(self._layer), *self.box.shape[1:]) or slices > left:
            raise ValueError(f"{slab_CZYX.shape} (c, z, y, x) are no slices of {self.box}, of which {left} are left")
        done = 0
        while done < slices:
            held = self._taken % self._depth
            part = slab_CZYX[:, done : done + self._depth - held]
            for channel, memory in zip(part, self._layer, strict=True):
                self._packer.place(channel, memory, held)
            done += part.shape[1]
            self._taken += part.shape[1]
            if self._taken % self._depth == 0 or self._taken == self.box.shape[0]:
                self._write()

    def _write(self) -> None:
        z, held = divmod(self._taken - 1, self._depth)
        for memory in self._layer:
            self._packer.blank(memory, held + 1)
        for c, y, x in np.ndindex(self._layer.shape[:3]):
            self._encoder.chunk((c, z, y, x), self._layer[c, y, x])
        self._file.rest()

    def finish(self) -> Receipt | None:
        """Write the index; the receipt of what was summed up, None where nothing was."""
        depth = self.box.shape[0]
        if self._taken != depth or self._summed not in (0, depth):
            raise ValueError(f"of {depth} slices of a shard {self._taken} were taken, {self._summed} summed up")
        self._encoder.finish()
        self._file.rest()
        size = self.box.size * self._itemsize
        return Receipt(self.box, joined([(crc, size) for crc in self._crc32c])) if self._summed else None
