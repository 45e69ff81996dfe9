"""One level of blocks side by side, of which a few slices lie in memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurovol.geometry import Receipt
from neurovol.volume.histogram import Counter
from neurovol.volume.shardstream import ShardStream
from neurovol.volume.workspace import reused


class Slabs:
    """Takes slabs in order of z: sums them up, counts them, and hands them to the blocks' shards.

    |<------------ a slice ------------->|
    |   block    |   block    |   block  |      a shard each
    """

    def __init__(
        self,
        name: str,
        stream: ShardStream,
        counter: Counter | None,
        channels: int,
        dtype: np.dtype[Any],
        slab: int,
        receipts: bool,
    ) -> None:
        """`name` tells this memory from another level's; `slab`: how many slices come at once, or fewer."""
        self.box, self.boxes, self.counter = stream.box, stream.boxes, counter
        self._stream, self._receipts = stream, receipts
        self._memory = reused(f"slab of {name}", (channels, slab, *self.box.shape[1:]), dtype)
        self._slab = self._memory[:, :0]
        self._taken = 0  # slices

    def room(self, slices: int) -> NDArray[Any]:
        """Where the next slices belong, (c, z, y, x), of any content."""
        self._slab = self._memory[:, :slices]
        return self._slab

    def take(self) -> None:
        """The room given holds its voxels."""
        if self._receipts:
            self._stream.sum_up(self._slab)
        if self.counter is not None:
            z, y, x = self.box.start
            self.counter.add(self._slab, (z + self._taken, y, x), self._stream.widths)
        self._stream.take(self._slab)
        self._taken += self._slab.shape[1]

    def finish(self) -> list[Receipt]:
        """Of each block, where receipts are wanted."""
        return self._stream.finish()
