"""Where a prediction is wanted: in tissue alone, as the mask says that conversion made at a coarse level."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neurovol.errors import UserError
from neurovol.geometry import Box, Zyx, zyx
from neurovol.stages.tissue import tissue_path
from neurovol.volume.omezarr import VolumeReader, open_volume

NO_TISSUE = "no tissue"  # why a block was skipped, in its ledger's row


@dataclass(frozen=True)
class Where:
    """The voxels of level 0 that a coarse mask holds; each of the mask's voxels is `coarser` of them."""

    mask: VolumeReader
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


def where_of(image: Path) -> Where:
    """Where an image has tissue; UserError where it has no mask."""
    path = tissue_path(image)
    if not path.exists():
        raise UserError(
            f'{path}: segment.where = "tissue" needs the mask that conversion writes, and there is none: it was '
            f'converted without; `neurovol convert --redo convert` makes it, and segment.where = "all" does without'
        )
    return Where(VolumeReader(str(path)), zyx(open_volume(path).attributes["coarser"]))


def tissue_share(image: Path) -> float | None:
    """How much of an image is tissue, 0 to 1; None where there is no mask yet."""
    path = tissue_path(image)
    return float(open_volume(path).attributes["share"]) if path.exists() else None
