"""How a stage covers a volume: reader, kernel and writer joined into the task of one block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from distributed import Client
from numpy.typing import NDArray

from neurovol.blockwise.attempt import BlockTask
from neurovol.blockwise.ledger import Ledger
from neurovol.blockwise.runner import Meter, run_blocks
from neurovol.geometry import Block, BlockGrid, Box, Numbered, Receipt, Window, Zyx, ceil_div, window_count, windows
from neurovol.progress import Report, silent
from neurovol.stages.skip import NO_TISSUE, Where
from neurovol.volume.histogram import ENOUGH_TO_SHOW, Counter, as_arrays, rows_counted
from neurovol.volume.notes import write_note
from neurovol.volume.omezarr import VolumeInfo, VolumeReader, VolumeWriter, open_volume
from neurovol.volume.pyramid import downsample
from neurovol.volume.reads import Reads
from neurovol.volume.source import read_reflected

Kernel = Callable[[NDArray[Any]], NDArray[np.float32]]  # raw (c, z, y, x) to probabilities (z, y, x)


class Spec(Protocol):
    """What a network's spec says of how it must be covered."""

    @property
    def halo(self) -> Zyx: ...
    @property
    def stride(self) -> Zyx: ...


@dataclass(frozen=True)
class Cover:
    """Probabilities of a kernel over the blocks of a volume, window by window, as uint8 (p = value / 255).

    Only `boxes` are computed, the rest of a block is 0. The float32 result equals one pass of the
    kernel over the whole volume, reflected by the halo (invariant 2), and is 0 wherever `where` does not want it.
    """

    reader: Reads
    kernel: Kernel
    writer: VolumeWriter
    volume: Zyx
    boxes: tuple[Box, ...]
    window: Zyx
    halo: Zyx
    stride: Zyx
    where: Where | None = None  # None: everywhere

    def __call__(self, block: Block) -> Receipt:
        where = self.where and self.where.held(block.write)
        if where is not None and not any(where.touches(b.intersect(block.write)) for b in self.boxes):
            receipt = self.writer.write(block.write, np.zeros(block.write.shape, np.uint8))
            return replace(receipt, skipped=NO_TISSUE)
        values = np.zeros(block.write.shape, np.uint8)  # a block may be large: it is never held as float32
        for write, p in replace(self, where=where)._parts(block.write):
            values[write.within(block.write)] = quantised(p)
        return self.writer.write(block.write, values)

    def probabilities(self, box: Box) -> NDArray[np.float32]:
        """float32 (z, y, x) of a box, before rounding."""
        result = np.zeros(box.shape, np.float32)
        for write, p in self._parts(box):
            result[write.within(box)] = p
        return result

    def _parts(self, box: Box) -> Iterator[tuple[Box, NDArray[np.float32]]]:
        """What of a box is not 0, window by window."""
        for region in self.boxes:
            for window in windows(region.intersect(box), self.window, self.halo, self.stride):
                if self.where is None:
                    yield window.write, self._computed(window)
                elif self.where.touches(window.write):
                    yield window.write, self._computed(window) * self.where.read(window.write)

    def _computed(self, window: Window) -> NDArray[np.float32]:
        p = self.kernel(read_reflected(self.reader, window.read, self.volume))
        return p[window.write.within(window.read)]

    def window_count(self, blocks: Sequence[Block]) -> int:
        """How many windows the blocks come to."""
        regions = (region.intersect(block.write) for block in blocks for region in self.boxes)
        return sum(window_count(region, self.window, self.stride) for region in regions)


def quantised(p: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Probabilities as uint8, p = value / 255, to the nearest.

    >>> quantised(np.array([0, 0.5, 1], np.float32)).tolist()
    [0, 128, 255]
    """
    return (p * 255 + 0.5).astype(np.uint8)


@dataclass(frozen=True)
class Downsample:
    """A block of a pyramid level from the level below."""

    below: VolumeReader
    writer: VolumeWriter
    volume_below: Zyx
    factors: Zyx
    how: Literal["mean", "max"]
    notes: str | None = None  # folder for the histogram of each block of an image, by its index

    def __call__(self, block: Block) -> Receipt:
        finer = block.write.upsampled(self.factors).intersect(Box.of_shape(self.volume_below))
        array = downsample(self.below.read(finer), self.factors, self.how)
        if self.notes is not None:
            rows = rows_counted(ceil_div(self.volume_below, self.factors), ENOUGH_TO_SHOW)
            counter = Counter(len(array), array.dtype, rows)
            counter.add(array, block.write.start)
            write_note(Path(self.notes), block.index, as_arrays([counter.histogram()]))
        return self.writer.write(block.write, array)


def grids(info: VolumeInfo) -> list[BlockGrid]:
    """The blocks of each level: one shard each."""
    return [BlockGrid(info.level_shape(n), info.shard(n), info.shard(n)) for n in range(info.levels)]


def level_blocks(info: VolumeInfo, boxes: Sequence[Box] | None = None) -> list[Numbered]:
    """Per level the blocks that hold any of `boxes` (level 0 voxels; default all), numbered on through the levels.

    Levels whose shards are parts of level 0's have none of their own: they are written with those.
    """
    all_grids = grids(info)
    offsets = [0, *accumulate(len(grid) for grid in all_grids)]
    result: list[Numbered] = []
    for level, grid in enumerate(all_grids):
        places = None if boxes is None else grid.places_meeting(boxes)
        result.append(Numbered(grid, offsets[level], () if 0 < level <= info.fused else places))
        if boxes is not None and level + 1 < info.levels:
            boxes = [box.downsampled(info.factors[level]) for box in boxes]
    return result


PIECE: Zyx = (32, 512, 512)  # read at once: 8 million voxels, whatever the box


def label_pieces(annotation: VolumeReader, boxes: Sequence[Box]) -> Iterator[tuple[NDArray[np.uint8], Box]]:
    """The labels of some boxes in bounded pieces; voxels that an earlier box held already are 0 (unlabelled)."""
    for i, box in enumerate(boxes):
        for window in windows(box, PIECE, (0, 0, 0), (1, 1, 1)):
            labels = annotation.read(window.write)
            for earlier in boxes[:i]:
                shared = earlier.intersect(window.write)
                if shared.size:
                    labels[shared.within(window.write)] = 0
            yield labels, window.write


def write_levels(
    client: Client,
    path: Path,
    task: BlockTask,
    ledger: Ledger,
    boxes: Sequence[Box] | None = None,
    *,
    how: Literal["mean", "max"] = "mean",
    retries: int = 2,
    report: Report = silent,
    watch: Callable[[], object] = int,
    near: bool = False,
) -> None:
    """Run `task` over level 0, then make each level from the one below, all in one ledger; for `watch` see Meter.

    With `near` blocks of level 0 that lie near each other are run one soon after the other, whose halos share much.
    """
    meter = Meter(ledger, report, watch)
    blocks = level_blocks(open_volume(path, allow_incomplete=True), boxes)
    run_blocks(client, task, blocks[0].near_each_other() if near else blocks[0], meter, retries=retries)
    write_coarser(client, path, blocks, meter, how, retries)


def write_coarser(
    client: Client,
    path: Path,
    blocks: Sequence[Sequence[Block]],
    meter: Meter,
    how: Literal["mean", "max"],
    retries: int,
    notes: Path | None = None,
    first: int = 1,
) -> None:
    """Make each level from the `first` on that has blocks of its own from the one below; note their histograms."""
    info = open_volume(path, allow_incomplete=True)
    for level in range(first, info.levels):
        task = Downsample(
            VolumeReader(str(path), level - 1, allow_incomplete=True),
            VolumeWriter(str(path), level),
            info.level_shape(level - 1),
            info.factors[level - 1],
            how,
            None if notes is None else str(notes),
        )
        if blocks[level]:
            run_blocks(client, task, blocks[level], meter, retries=retries)
