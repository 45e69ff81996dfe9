"""Pyramid levels put together from the parts that were made of each block of level 0, while its voxels were at hand.

Levels too coarse for a block's part to be whole chunks cannot be written block by block; but the part, a hundredth
of the block or less, is noted, so that nothing of the store is read again to make them.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neurovol.geometry import Block, BlockGrid, Box, Receipt, Zyx
from neurovol.stages.blockcopy import part_name
from neurovol.volume.histogram import ENOUGH_TO_SHOW, Counter, as_arrays, rows_counted
from neurovol.volume.notes import read_note, write_note
from neurovol.volume.omezarr import VolumeWriter


@dataclass(frozen=True)
class Assemble:
    """A block of a level, from the noted parts of the blocks of level 0 that it covers; notes its histogram."""

    notes: str
    grid: BlockGrid  # of level 0
    total: Zyx  # by what the level is coarser than level 0
    level: int
    shape: Zyx  # of the level
    channels: int
    dtype: np.dtype[Any]
    writer: VolumeWriter
    histogram: bool = True

    def __call__(self, block: Block) -> Receipt:
        array = np.empty((self.channels, *block.write.shape), self.dtype)
        covered = block.write.upsampled(self.total).intersect(Box.of_shape(self.grid.volume))
        for part in self.grid.meeting([covered]):
            box = part.write.downsampled(self.total)
            here = box.intersect(block.write)
            voxels = read_note(Path(self.notes), part.index)[part_name(self.level)]
            array[(slice(None), *here.within(block.write))] = voxels[(slice(None), *here.within(box))]
        if self.histogram:
            counter = Counter(self.channels, self.dtype, rows_counted(self.shape, ENOUGH_TO_SHOW))
            counter.add(array, block.write.start)
            write_note(Path(self.notes), block.index, as_arrays([counter.histogram()]))
        return self.writer.write(block.write, array)


@dataclass(frozen=True)
class AssembleLevels:
    """Blocks of several levels, none of which waits for those of another; told from each other by their numbers."""

    firsts: tuple[int, ...]  # the number of each level's first block, ascending
    levels: tuple[Assemble, ...]

    def __call__(self, block: Block) -> Receipt:
        return self.levels[bisect_right(self.firsts, block.index) - 1](block)
