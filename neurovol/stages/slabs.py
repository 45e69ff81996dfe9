"""One level of blocks side by side, of which a few slices lie in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurovol.geometry import Box, Receipt
from neurovol.volume.histogram import Counter
from neurovol.volume.shardstream import ShardStream
from neurovol.volume.workspace import reused


class Slabs:
    """Takes slabs in order of z: sums them up, counts them, and hands each block's part to its shard.

    |<------------ a slice ------------->|
    |   block    |   block    |   block  |      a stream to a shard each
    """

    def __init__(
        self,
        name: str,
        streams: Sequence[ShardStream],
        counters: Sequence[Counter | None],
        channels: int,
        dtype: np.dtype[Any],
        slab: int,
        receipts: bool,
    ) -> None:
        """`name` tells this memory from another level's; `slab`: how many slices come at once, or fewer."""
        first, last = streams[0].box, streams[-1].box
        self.box = Box(first.start, last.stop)
        self.boxes = [stream.box for stream in streams]
        self.counters = counters
        columns = [box.within(self.box)[2] for box in self.boxes]
        self._takers = list(zip(streams, counters, columns, strict=True))
        self._receipts = receipts
        self._memory = reused(f"slab of {name}", (channels, slab, *self.box.shape[1:]), dtype)
        self._slab = self._memory[:, :0]
        self._taken = 0  # slices

    def room(self, slices: int) -> NDArray[Any]:
        """Where the next slices belong, (c, z, y, x), of any content."""
        self._slab = self._memory[:, :slices]
        return self._slab

    def take(self) -> None:
        """The room given holds its voxels."""
        z, y, x = self.box.start
        for stream, counter, columns in self._takers:
            part = self._slab[..., columns]
            if self._receipts:
                stream.sum_up(part)
            if counter is not None:
                counter.add(part, (z + self._taken, y, x + columns.start))
            stream.take(part)
        self._taken += self._slab.shape[1]

    def finish(self) -> list[Receipt]:
        """Of each block, where receipts are wanted."""
        found = [stream.finish() for stream, _, _ in self._takers]
        return [receipt for receipt in found if receipt is not None]
