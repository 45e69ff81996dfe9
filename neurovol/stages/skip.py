"""Where a prediction is wanted: in tissue alone, as a mask says at a coarse level, so that empty blocks are skipped.

|    block   |    block   |    block   |
|. . . . . . . . . t t t t t t t t t t |    the mask, t: tissue; each of its voxels is many of level 0
|  skipped   | windows that touch a t  |    and of those what lies outside any t is set to 0
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neurovol.errors import UserError
from neurovol.geometry import Block, Box, Zyx, side_by_side, window_count, windows, zyx
from neurovol.levels import coarsening
from neurovol.stages.tissue import thresholded, tissue_path
from neurovol.volume.omezarr import VolumeReader, open_volume
from neurovol.volume.reads import Reads
from neurovol.volume.tissue import VERSION, tissue_level

NO_TISSUE = "no tissue"  # why a block was skipped, in its ledger's row
ROW = 64  # blocks side by side whose mask is read at once: one read of a few MB rather than 64


@dataclass(frozen=True)
class Held:
    """A part of a mask in memory, to be read as the whole is."""

    array: NDArray[np.uint8]
    box: Box

    def read(self, box: Box) -> NDArray[np.uint8]:
        return self.array[box.within(self.box)]


@dataclass(frozen=True)
class Where:
    """The voxels of level 0 that a coarse mask holds; each of the mask's voxels is `coarser` of them."""

    mask: Reads  # 0 where there is no tissue
    coarser: Zyx

    def touches(self, box: Box) -> bool:
        """Whether any voxel of a box of level 0 is wanted."""
        return box.size > 0 and bool(self.mask.read(box.downsampled(self.coarser)).any())

    def read(self, box: Box) -> NDArray[np.bool_]:
        """(z, y, x) of a box of level 0, which lies in the volume: True where voxels are wanted."""
        wanted = self.mask.read(box.downsampled(self.coarser)) > 0
        for axis, factor in enumerate(self.coarser):
            wanted = wanted.repeat(factor, axis)
        whole = box.downsampled(self.coarser).upsampled(self.coarser)
        found: NDArray[np.bool_] = wanted[box.within(whole)]
        return found

    def held(self, box: Box) -> Where:
        """The same for a box of level 0 and what lies in it, its mask read or made once."""
        coarse = box.downsampled(self.coarser)
        return replace(self, mask=Held(self.mask.read(coarse), coarse))


@dataclass(frozen=True)
class Kept:
    """What is computed of a prediction in tissue alone."""

    blocks: int = 0
    windows: int = 0
    voxels: int = 0  # of those windows' write boxes


def kept_of(where: Where, blocks: Iterable[Block], boxes: tuple[Box, ...], window: Zyx, stride: Zyx) -> Kept:
    """Blocks and windows that hold tissue of any of the boxes, counted in bounded memory; nothing is computed."""
    held_blocks = held_windows = held_voxels = 0
    for row in side_by_side(blocks, lambda: ROW):
        held = where.held(Box(row[0].write.start, row[-1].write.stop))
        for block in row:
            counts = [_windows_in(held, box.intersect(block.write), window, stride) for box in boxes]
            held_blocks += any(number for number, _ in counts)
            held_windows += sum(number for number, _ in counts)
            held_voxels += sum(size for _, size in counts)
    return Kept(held_blocks, held_windows, held_voxels)


def _windows_in(where: Where, region: Box, window: Zyx, stride: Zyx) -> tuple[int, int]:
    """How many windows of a region hold tissue, and how many voxels they write."""
    if not where.touches(region):
        return 0, 0
    if where.mask.read(region.downsampled(where.coarser)).all():  # spares most of the looking at single windows
        return window_count(region, window, stride), region.size
    sizes = [w.write.size for w in windows(region, window, (0, 0, 0), stride) if where.touches(w.write)]
    return len(sizes), sum(sizes)


def where_of(image: Path, above: float | None = None) -> Where:
    """Where an image has tissue: as its mask says, or what exceeds an intensity; UserError where neither can be."""
    if fault := mask_fault(image, above):
        raise UserError(fault)
    if above is None:
        path = tissue_path(image)
        return Where(VolumeReader(str(path)), zyx(open_volume(path).attributes["coarser"]))
    info = open_volume(image)
    level = tissue_level(info.shape, info.voxel_size_um, info.factors)
    mask = thresholded(info, level, [above] * (info.channels or 1))
    return Where(mask, coarsening(info.factors[:level]))


def mask_fault(image: Path, above: float | None = None) -> str:
    """Why a converted image cannot be masked, with the way out; nothing where it can."""
    if above is not None:
        largest = np.iinfo(open_volume(image).dtype).max
        over = f"{image}: segment.above = {above:g}, but no voxel exceeds {largest}, so nothing would be predicted"
        return f"{over}; choose a smaller one" if above >= largest else ""
    path = tissue_path(image)
    way_out = (
        "`neurovol convert PROJECT --redo convert` makes it; or give the intensity of tissue as segment.above, or set "
        'segment.where = "all"'
    )
    if not path.exists():
        return f'{path}: segment.where = "tissue" needs this mask, and the sample was converted without; {way_out}'
    if (found := open_volume(path).attributes["version"]) != VERSION:
        return f"{path}: this mask was made by version {found} of its rule, and {VERSION} is asked for; {way_out}"
    return ""
