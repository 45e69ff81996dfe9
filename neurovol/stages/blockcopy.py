"""What conversion does with a block: voxels read a few slices at a time, and all that is made of them made at once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
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
from neurovol.geometry import Block, Box, Receipt, Zyx, ceil_div, round_up, zyx
from neurovol.stages.slabs import Slabs
from neurovol.volume.histogram import ENOUGH, ENOUGH_TO_SHOW, Counter, Histogram, as_arrays, rows_counted
from neurovol.volume.notes import write_note
from neurovol.volume.omezarr import VolumeWriter
from neurovol.volume.pyramid import downsample
from neurovol.volume.shardstream import ShardStream
from neurovol.volume.source import Source
from neurovol.volume.stored import sync_folders, write_text
from neurovol.volume.unpacked import planes_of

SLAB = 4  # slices read at once, and what is made of them made while they are in the processor's cache


def slab_depth(grain: Zyx, fused: Iterable[Zyx], depth: int) -> int:
    """How many slices of a block are read at once: whole ones of all levels; all where the source decodes many at once.

    >>> slab_depth((1, 1, 1), [(1, 2, 2), (2, 2, 2)], 128), slab_depth((64, 64, 64), [], 128)
    (4, 128)
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

        |<------ slices, read at once ------>|
        |   block    |   block    |   block  |
        """
        bad: dict[int, str] = {}
        with ExitStack() as stack:
            files = [stack.enter_context(ExitStack()) for _ in blocks]
            copy = self._copy(blocks, files)
            for slab in self._slabs(copy.levels[0].box):
                voxels = copy.levels[0].room(slab.shape[0])
                bad |= self._read(slab, voxels)
                copy.take(slab, voxels)
            receipts = copy.finish()
            stack.pop_all()  # from here on each block's files are closed as it lands
            return Landing(receipts, partial(self._land, blocks, copy, bad, files))

    def _land(self, blocks: Sequence[Block], copy: _Copy, bad: dict[int, str], files: Sequence[ExitStack]) -> None:
        """Of all blocks at once: file systems make many files durable in the time of one, and many names."""

        def land(place: int) -> None:
            files[place].close()  # on disk when this returns
            self._take_notes(blocks[place], copy, place, bad)

        names = [
            partial(writer.keep_names, level.boxes) for writer, level in zip(self._writers, copy.levels, strict=True)
        ]
        with ThreadPoolExecutor(len(blocks)) as threads:
            list(threads.map(land, range(len(blocks))))
            list(threads.map(lambda keep: keep(), [*names, partial(sync_folders, [Path(self.notes)])]))

    @property
    def _writers(self) -> list[VolumeWriter]:
        """Of level 0, and of those that are made with it."""
        return [VolumeWriter(self.path, level, self.durable) for level in range(1 + len(self.fused))]

    def _copy(self, blocks: Sequence[Block], files: Sequence[ExitStack]) -> _Copy:
        dtype, n = self.source.dtype, len(self.channels)
        boxes = [list(accumulate(self.fused, Box.downsampled, initial=block.write)) for block in blocks]
        shapes = accumulate(self.fused, ceil_div, initial=zyx(self.source.shape[1:]))
        slabs = accumulate((f[0] for f in self.fused), lambda n, f: -(-n // f), initial=self._slab(blocks[0].write))
        levels = []
        each = zip(self._writers, shapes, slabs, zip(*boxes, strict=True), strict=True)
        for level, (writer, shape, slab, own) in enumerate(each):
            name = f"level {level}"
            shards = [file.enter_context(writer.shard(box)) for file, box in zip(files, own, strict=True)]
            every = rows_counted(shape, ENOUGH_TO_SHOW if level else ENOUGH)
            counter = Counter(n, dtype, every, len(blocks)) if self.histogram else None
            levels.append(Slabs(name, ShardStream(shards, name), counter, n, dtype, slab, receipts=not level))
        last = np.empty((n if self.parted else 0, *levels[-1].box.shape), dtype)
        return _Copy(self.fused, levels, last)

    def _take_notes(self, block: Block, copy: _Copy, place: int, bad: dict[int, str]) -> None:
        file = Path(self.notes) / f"{block.index}.bad"
        if bad:
            write_text(file, json.dumps(bad))
        else:
            file.unlink(missing_ok=True)  # of an earlier attempt
        if self.histogram or self.parted:
            parts = islice(
                accumulate(self.parted, partial(downsample, how="mean"), initial=copy.last_of(place)), 1, None
            )
            named = {part_name(level): part for level, part in enumerate(parts, 1 + len(self.fused))}
            write_note(Path(self.notes), block.index, as_arrays(copy.histograms(place)) | named, named=False)

    def _slab(self, box: Box) -> int:
        return slab_depth(self.source.grain, self.fused, box.shape[0])

    def _slabs(self, box: Box) -> Iterator[Box]:
        (first, *start), (last, *stop), step = box.start, box.stop, self._slab(box)
        return (Box(zyx((z, *start)), zyx((min(z + step, last), *stop))) for z in range(first, last, step))

    def _read(self, slab: Box, out: NDArray[Any]) -> dict[int, str]:
        """Voxels into `out` (c, z, y, x); slices that could not be read, with the reason."""
        if self.fill:
            return read_filled(self.source, slab, self.channels, out)[1]
        self.source.read(slab, self.channels, out)
        return {}


def part_name(level: int) -> str:
    """Of a block's part of a level among what is noted of the block."""
    return f"part_of_level_{level}"


@dataclass
class _Copy:
    """Blocks side by side on their way: a shard of each level for each, and the counts of its values."""

    fused: tuple[Zyx, ...]
    levels: list[Slabs]
    last: NDArray[Any]  # (c, z, y, x) of the last of these levels; without channels where no more are made of it

    def take(self, slab: Box, voxels: NDArray[Any]) -> None:
        """The first level's room holds these voxels, (c, z, y, x): others are made of it, and all written on."""
        for level, factors in zip(self.levels[1:], self.fused, strict=True):
            slab = slab.downsampled(factors)
            voxels = downsample(voxels, factors, "mean", level.room(slab.shape[0]))
        if len(self.last):
            self.last[(slice(None), *slab.within(self.levels[-1].box))] = voxels
        for level in self.levels:
            level.take()

    def finish(self) -> list[Receipt]:
        """Those of level 0."""
        receipts, *_ = [level.finish() for level in self.levels]
        return receipts

    def last_of(self, place: int) -> NDArray[Any]:
        """A block's part of the last of these levels."""
        level = self.levels[-1]
        return self.last[(slice(None), *level.boxes[place].within(level.box))]

    def histograms(self, place: int) -> list[Histogram]:
        """A block's, by level."""
        counters = (level.counter for level in self.levels)
        return [counter.histogram(place) for counter in counters if counter is not None]


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
