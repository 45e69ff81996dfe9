"""Shards side by side written a layer of chunks at a time, from slices as they come.

    |<------ slices of all of them ------>|   →  layer of chunks, being filled, and when it is whole
    |   shard    |   shard    |   shard   |   →  compressed, and on its way to each file  →  next layer

So no block of voxels has to lie in memory as a whole, and what is done to slices is done to whole rows of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurovol.geometry import Box, Receipt, Zyx, ceil_div
from neurovol.volume.crc import extended_columns, joined
from neurovol.volume.direct import Output
from neurovol.volume.packing import Packer
from neurovol.volume.shardfile import ShardEncoder
from neurovol.volume.workspace import reused


@dataclass(frozen=True)
class OpenShard:
    """One shard of an image, open and empty, for the voxels of `box`."""

    box: Box
    file: Output
    encoder: ShardEncoder
    packer: Packer
    chunk: Zyx
    channels: int
    dtype: np.dtype[Any]


class ShardStream:
    """Takes the voxels of such shards in order of z, all channels at once; `finish` gives what receipts are wanted."""

    def __init__(self, shards: Sequence[OpenShard], name: str = "a row of shards") -> None:
        """Side by side along x, in their order; `name` is of no other stream open on this thread."""
        self._shards, first, last = shards, shards[0], shards[-1]
        self.box, self._packer, self._depth = Box(first.box.start, last.box.stop), first.packer, first.chunk[0]
        self.boxes = [shard.box for shard in shards]
        self.widths = [box.shape[2] for box in self.boxes]
        self._height, self._length = self.box.shape[1], self.box.shape[0]
        chunks = ceil_div(self.box.shape, first.chunk)[1:]
        size = prod(first.chunk) * first.dtype.itemsize
        self._layer = reused(f"layer of {name}", (first.channels, *chunks, size), np.dtype(np.uint8))
        self._summed = self._taken = 0  # slices
        self._crc32c = [[0] * len(shards) for _ in range(first.channels)]

    def sum_up(self, slab_CZYX: NDArray[Any]) -> None:
        """The next slices for receipts: (c, z, y, x), as wide as the shards together, any number of them."""
        for channel, sums in zip(slab_CZYX, self._crc32c, strict=True):
            extended_columns(sums, channel, self.widths)
        self._summed += slab_CZYX.shape[1]

    def take(self, slab_CZYX: NDArray[Any]) -> None:
        """The next slices for the files: (c, z, y, x), as wide as the shards together, any number of them."""
        channels, slices, *rows = slab_CZYX.shape
        left = self._length - self._taken
        if (channels, *rows) != (len(self._layer), self._height, sum(self.widths)) or slices > left:
            raise ValueError(f"{slab_CZYX.shape} (c, z, y, x) are no slices of {self.box}, of which {left} are left")
        done = 0
        while done < slices:
            held = self._taken % self._depth
            part = slab_CZYX[:, done : done + self._depth - held]
            for channel, memory in zip(part, self._layer, strict=True):
                self._packer.place(channel, memory, held)
            done += part.shape[1]
            self._taken += part.shape[1]
            if self._taken % self._depth == 0 or self._taken == self._length:
                self._write()

    def _write(self) -> None:
        z, held = divmod(self._taken - 1, self._depth)
        for memory in self._layer:
            self._packer.blank(memory, held + 1)
        x = 0
        for shard in self._shards:
            along = -(-shard.box.shape[2] // shard.chunk[2])
            for c, memory in enumerate(self._layer):
                shard.encoder.layer((c, z, 0, 0), memory[:, x : x + along])
            shard.file.rest()
            x += along

    def finish(self) -> list[Receipt]:
        """Write the indices; the receipts of what was summed up, none where nothing was."""
        depth = self._length
        if self._taken != depth or self._summed not in (0, depth):
            raise ValueError(f"of {depth} slices of shards {self._taken} were taken, {self._summed} summed up")
        for shard in self._shards:
            shard.encoder.finish()
            shard.file.rest()
        if not self._summed:
            return []
        of_each = zip(*self._crc32c, strict=True)
        return [_receipt(shard, sums) for shard, sums in zip(self._shards, of_each, strict=True)]


def _receipt(shard: OpenShard, of_channels: Sequence[int]) -> Receipt:
    size = shard.box.size * shard.dtype.itemsize
    return Receipt(shard.box, joined([(crc, size) for crc in of_channels]))
