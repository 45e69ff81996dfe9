"""One shard written from slabs of slices, a layer of chunks at a time.

    | slab | slab | slab | slab || slab | …
    |<--- a layer of chunks --->||             encoded, and on its way to disk, once its last slab has come

So no block of voxels has to lie in memory as a whole, and what is encoded has just been written.
"""

from __future__ import annotations

from itertools import product
from math import prod
from typing import Any, BinaryIO

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from neurovol.geometry import Box, Receipt, Zyx, ceil_div
from neurovol.volume.crc import joined
from neurovol.volume.shardfile import Codec, ShardEncoder
from neurovol.volume.workspace import reused
from neurovol.volume.writeback import start_writeback


class ShardStream:
    """Takes the voxels of one shard in order of z, all channels at once; `finish` gives the receipt."""

    def __init__(
        self,
        file: BinaryIO,
        box: Box,
        channels: int,
        dtype: np.dtype[Any],
        chunk: Zyx,
        shard: Zyx,
        codec: Codec,
        name: str,
        durable: bool = True,
    ) -> None:
        """Write to `file`, open and empty, the voxels of `box`; `name` tells this stream's memory from another's."""
        self._file, self._box, self._chunk, self._durable = file, box, chunk, durable
        counts = tuple(s // c for s, c in zip(shard, chunk, strict=True))
        self._encoder = ShardEncoder((channels, *counts), prod(chunk) * dtype.itemsize, codec)
        _, ny, nx = ceil_div(box.shape, chunk)
        self._layer = reused(name, (channels, ny, nx, *chunk), dtype)
        if (ny * chunk[1], nx * chunk[2]) != box.shape[1:]:
            self._layer.fill(0)  # what of the last chunks lies beyond the volume
        self._added = 0  # slices
        self._crc32c = [0] * channels

    def add(self, slab_CZYX: NDArray[Any]) -> None:
        """The next slices: (c, z, y, x), as wide as the box."""
        for c, channel in enumerate(slab_CZYX):
            self._crc32c[c] = google_crc32c.extend(self._crc32c[c], np.ascontiguousarray(channel))
        start = 0
        while start < slab_CZYX.shape[1]:
            held = self._added % self._chunk[0]
            part = slab_CZYX[:, start : start + self._chunk[0] - held]
            self._place(part, held)
            self._added += part.shape[1]
            start += part.shape[1]
            if self._added % self._chunk[0] == 0:
                self._encode(self._added // self._chunk[0] - 1)

    def _place(self, part_CZYX: NDArray[Any], z: int) -> None:
        """Copy slices to their chunks, from plane z of the layer on."""
        _, cy, cx = self._chunk
        _, ny, nx = self._layer.shape[:3]
        depth = part_CZYX.shape[1]
        for y, x in product(range(ny), range(nx)):
            cell = part_CZYX[:, :, y * cy : (y + 1) * cy, x * cx : (x + 1) * cx]
            self._layer[:, y, x, z : z + depth, : cell.shape[2], : cell.shape[3]] = cell

    def _encode(self, z: int) -> None:
        for c, y, x in np.ndindex(*self._layer.shape[:3]):
            self._file.writelines(self._encoder.chunk((c, z, y, x), self._layer[c, y, x]))
        if self._durable:
            start_writeback(self._file)

    def finish(self) -> Receipt:
        """Write what is left and the index."""
        if self._added != self._box.shape[0]:
            raise ValueError(f"{self._added} slices were added to a shard of {self._box.shape[0]}")
        held = self._added % self._chunk[0]
        if held:
            self._layer[:, :, :, held:] = 0
            self._encode(self._added // self._chunk[0])
        self._file.writelines(self._encoder.index())
        size = self._box.size * self._layer.itemsize
        return Receipt(self._box, joined([(crc, size) for crc in self._crc32c]))
