"""One level of blocks side by side, in memory only as long as its chunks take to be whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurovol.geometry import Box, Receipt
from neurovol.volume.histogram import Counter
from neurovol.volume.shardstream import ShardStream
from neurovol.volume.workspace import reused


def held_slices(chunk: int, slab: int) -> int:
    """How many slices of a level lie in memory, where `slab` of them come at once and chunks are `chunk` deep.

    >>> held_slices(64, 8), held_slices(64, 256), held_slices(10, 4)
    (64, 256, 14)
    """
    return max(chunk, slab) if max(chunk, slab) % min(chunk, slab) == 0 else chunk + slab


class Layers:
    """Takes the slabs of blocks side by side in order of z, and writes each layer of chunks once it is whole.

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
        """`name` tells this memory from another level's; `slab`: how many slices are taken at once, or fewer."""
        first, last = streams[0].box, streams[-1].box
        self.box = Box(first.start, last.stop)
        self.boxes = [stream.box for stream in streams]
        self.counters = counters
        columns = [box.within(self.box)[2] for box in self.boxes]
        self._writers = list(zip(streams, counters, columns, strict=True))
        self._receipts = receipts
        self._chunk = streams[0].chunk[0]
        self._memory = reused(name, (channels, held_slices(self._chunk, slab), *self.box.shape[1:]), dtype)
        self._gone = self._held = self._begun = 0  # slices: written, of which all but writing is done, given room

    def room(self, slices: int) -> NDArray[Any]:
        """Where the next slices belong, (c, z, y, x), of any content."""
        begun = self._begun
        self._begun += slices
        return self._memory[:, begun : self._begun]

    def take(self) -> None:
        """All rooms given hold their voxels: they are summed up, counted, and written as far as chunks are whole."""
        slab = self._memory[:, self._held : self._begun]
        z, y, x = self.box.start
        for stream, counter, columns in self._writers:
            part = slab[..., columns]
            if self._receipts:
                stream.sum_up(part)
            if counter is not None:
                counter.add(part, (z + self._gone + self._held, y, x + columns.start))
        self._held = self._begun
        self._write(ends=self._gone + self._held == self.box.shape[0])

    def _write(self, ends: bool) -> None:
        written = 0
        while self._held - written >= self._chunk or (ends and self._held > written):
            layer = self._memory[:, written : min(written + self._chunk, self._held)]
            for stream, _, columns in self._writers:
                stream.write(layer[..., columns])
            written += layer.shape[1]
        if 0 < written < self._held:
            self._memory[:, : self._held - written] = self._memory[:, written : self._held]
        self._gone += written
        self._held = self._begun = self._held - written

    def finish(self) -> list[Receipt]:
        """Of each block, where receipts are wanted."""
        found = [stream.finish() for stream, _, _ in self._writers]
        return [receipt for receipt in found if receipt is not None]
