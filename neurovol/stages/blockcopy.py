"""What conversion does with a block: voxels read a few slices at a time, and all that is made of them made at once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, islice, product
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurovol.blockwise.attempt import Landing
from neurovol.errors import Failure
from neurovol.geometry import Block, Box, Receipt, Zyx, ceil_div, round_up, windows, zyx
from neurovol.volume.histogram import ENOUGH, ENOUGH_TO_SHOW, Counter, Histogram, rows_counted, save_levels
from neurovol.volume.omezarr import VolumeWriter
from neurovol.volume.pyramid import downsample
from neurovol.volume.shardstream import ShardStream
from neurovol.volume.source import Source
from neurovol.volume.stored import write_text
from neurovol.volume.unpacked import planes_of
from neurovol.volume.workspace import reused

SLAB = 8  # slices read at once, and what is made of them made while they are in the processor's cache


def slab_depth(grain: Zyx, fused: Iterable[Zyx], depth: int) -> int:
    """How many slices of a block are read at once: whole ones of all levels; all where the source decodes many at once.

    >>> slab_depth((1, 1, 1), [(1, 2, 2), (2, 2, 2)], 128), slab_depth((64, 64, 64), [], 128)
    (8, 128)
    """
    return round_up(SLAB, prod(f[0] for f in fused)) if grain[0] == 1 else depth


@dataclass(frozen=True)
class Convert:
    """Copies one block, which is one shard, with its part of the levels that are made of it alone; counts values."""

    source: Source
    channels: tuple[int, ...]
    path: str
    fused: tuple[Zyx, ...]  # factors of those levels
    notes: str  # folder for what is noted of each block
    parted: tuple[Zyx, ...] = ()  # factors of further levels, of which the block's part is noted (see assemble.py)
    fill: bool = False  # zeros where a slice cannot be read
    durable: bool = True  # False, as the next, only to measure what it costs
    histogram: bool = True

    def __call__(self, block: Block) -> Receipt:
        landing = self.begin((block,))
        landing.wait()
        (receipt,) = landing.receipts
        return receipt

    def begin(self, blocks: Sequence[Block]) -> Landing:
        """Blocks side by side along x: whole rows of a slice are read in less time than parts of them.

        |<------- slab, read at once ------->|
        |   block    |   block    |   block  |
        """
        first, last = blocks[0].write, blocks[-1].write
        bad: dict[int, str] = {}
        with ExitStack() as stack:
            copies = [self._copy(block, place, stack) for place, block in enumerate(blocks)]
            for slab in self._slabs(Box(first.start, last.stop)):
                voxels, found = self._read(slab)
                bad |= found
                for block, copy in zip(blocks, copies, strict=True):
                    part = block.write.intersect(slab)
                    copy.add(part, voxels if part == slab else _cut(voxels, part.within(slab)))
            receipts = [copy.finish() for copy in copies]
            return Landing(receipts, partial(self._land, blocks, copies, bad, stack.pop_all()))

    def _land(self, blocks: Sequence[Block], copies: list[_Copy], bad: dict[int, str], files: ExitStack) -> None:
        files.close()  # on disk when this returns
        for block, copy in zip(blocks, copies, strict=True):
            self._take_notes(block, copy, bad)

    def _copy(self, block: Block, place: int, stack: ExitStack) -> _Copy:
        boxes = list(accumulate(self.fused, Box.downsampled, initial=block.write))
        shapes = list(accumulate(self.fused, ceil_div, initial=zyx(self.source.shape[1:])))
        writers = (VolumeWriter(self.path, level, self.durable) for level in range(len(boxes)))
        streams = [stack.enter_context(w.stream(box, place)) for w, box in zip(writers, boxes, strict=True)]
        dtype, n = self.source.dtype, len(self.channels)
        rows = [rows_counted(s, ENOUGH_TO_SHOW if level else ENOUGH) for level, s in enumerate(shapes)]
        counters = [Counter(n, dtype, every) if self.histogram else None for every in rows]
        last = np.empty((n if self.parted else 0, *boxes[-1].shape), dtype)
        return _Copy(self.fused, streams, counters, boxes[-1], last)

    def _take_notes(self, block: Block, copy: _Copy, bad: dict[int, str]) -> None:
        if bad:
            write_text(self._note(block, "bad"), json.dumps(bad))
        else:
            self._note(block, "bad").unlink(missing_ok=True)  # of an earlier attempt
        if self.histogram or self.parted:
            parts = islice(accumulate(self.parted, partial(downsample, how="mean"), initial=copy.last), 1, None)
            named = {part_name(level): part for level, part in enumerate(parts, 1 + len(self.fused))}
            save_levels(copy.histograms, self._note(block, "npz"), named)

    def _note(self, block: Block, kind: str) -> Path:
        return Path(self.notes) / f"{block.index}.{kind}"

    def _slabs(self, box: Box) -> Iterator[Box]:
        depth = slab_depth(self.source.grain, self.fused, box.shape[0])
        return (window.write for window in windows(box, (depth, *box.shape[1:]), (0, 0, 0), (1, 1, 1)))

    def _read(self, slab: Box) -> tuple[NDArray[Any], dict[int, str]]:
        """(c, z, y, x) on memory that the next call takes again, and slices that could not be read with the reason."""
        out = reused("slab", (len(self.channels), *slab.shape), self.source.dtype)
        if self.fill:
            return read_filled(self.source, slab, self.channels, out)
        return self.source.read(slab, self.channels, out), {}


def part_name(level: int) -> str:
    """Of a block's part of a level among what is noted of the block."""
    return f"part_of_level_{level}"


def _cut(voxels: NDArray[Any], part: tuple[slice, slice, slice]) -> NDArray[Any]:
    """A part of (c, z, y, x), contiguous, on memory that the next call takes again."""
    cut = voxels[(slice(None), *part)]
    out = reused("part of a slab", cut.shape, cut.dtype)
    out[...] = cut
    return out


@dataclass
class _Copy:
    """One block on its way: a shard of each level, and the counts of its values."""

    fused: tuple[Zyx, ...]
    streams: list[ShardStream]
    counters: list[Counter | None]
    last_box: Box
    last: NDArray[Any]  # (c, z, y, x) of the last of these levels; without channels where no more are made of it

    def add(self, slab: Box, voxels: NDArray[Any]) -> None:
        for level, (stream, counter) in enumerate(zip(self.streams, self.counters, strict=True)):
            if level:
                voxels = downsample(voxels, self.fused[level - 1], "mean")
                slab = slab.downsampled(self.fused[level - 1])
            stream.add(voxels)
            if counter is not None:
                counter.add(voxels, slab.start)
        if len(self.last):
            self.last[(slice(None), *slab.within(self.last_box))] = voxels

    def finish(self) -> Receipt:
        """The receipt of level 0."""
        receipt, *_ = [stream.finish() for stream in self.streams]
        return receipt

    @property
    def histograms(self) -> list[Histogram]:
        return [counter.histogram() for counter in self.counters if counter is not None]


def read_filled(
    source: Source, box: Box, channels: tuple[int, ...], out: NDArray[Any]
) -> tuple[NDArray[Any], dict[int, str]]:
    """(c, z, y, x) of a box with zeros for slices that cannot be read, and those slices with the reason."""
    try:
        return source.read(box, channels, out), {}
    except Failure:
        pass
    bad = {}
    for plane, (k, channel) in product(planes_of(box), enumerate(channels)):
        target = out[k : k + 1, plane.index - box.start[0]][:, None]
        try:
            source.read(plane.write, (channel,), target)
        except Failure as error:
            target[...] = 0
            bad[plane.index] = str(error)
    return out, bad
