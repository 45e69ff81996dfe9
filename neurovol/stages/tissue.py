"""The tissue mask of a sample: labels over a coarse level of its image, made block by block on Dask."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from distributed import Client
from numpy.typing import NDArray

from neurovol.blockwise.runner import settled
from neurovol.errors import Failure
from neurovol.geometry import Block, BlockGrid, Box, Receipt, Zyx, windows, zyx
from neurovol.levels import coarsening, fitted_shard
from neurovol.volume.omezarr import (
    VolumeInfo,
    VolumeReader,
    VolumeWriter,
    create_volume,
    finish_volume,
    open_volume,
    register_label,
)
from neurovol.volume.tissue import (
    MARGIN,
    PIECE,
    SIGMAS,
    VERSION,
    closing_um,
    noise_threshold,
    threshold_of,
    tissue_fraction,
    tissue_halo,
    tissue_level,
    tissue_mask,
)

NAME = "tissue"
CHUNK: Zyx = (32, 64, 64)
SHARD: Zyx = (128, 256, 256)  # 8 MB: a block's mask is in memory as a whole
RULE = (
    "tissue is what exceeds the threshold in any channel, with dark holes closed and a margin added; a threshold lies "
    f"{SIGMAS:g} standard deviations above the noise of the empty surroundings, and is 0 where none can be told"
)


@dataclass(frozen=True)
class Thresholded:
    """The mask of a level of an image, made as it is read; outside the volume there is no tissue."""

    reader: VolumeReader
    volume: Zyx
    voxel_size_um: tuple[float, float, float]
    thresholds: tuple[float, ...]  # per channel

    def read(self, box: Box) -> NDArray[np.uint8]:
        """(z, y, x) of a box in the volume, 1 where there is tissue; the same however a volume is cut into boxes."""
        mask = np.zeros(box.shape, np.uint8)
        for window in windows(box, PIECE, tissue_halo(self.voxel_size_um), (1, 1, 1)):
            found = tissue_mask(self._image(window.read), self.thresholds, self.voxel_size_um)
            mask[window.write.within(box)] = found[window.write.within(window.read)]
        return mask

    def _image(self, box: Box) -> NDArray[Any]:
        """(c, z, y, x) of a box that may leave the volume, 0 there."""
        inside = box.intersect(Box.of_shape(self.volume))
        missing = zip(box.pairs, inside.pairs, strict=True)
        return np.pad(self.reader.read(inside), [(0, 0), *((a - start, stop - b) for (start, stop), (a, b) in missing)])


def thresholded(
    info: VolumeInfo, level: int, thresholds: Sequence[float], *, allow_incomplete: bool = False
) -> Thresholded:
    """The mask of a level of an image."""
    z, y, x = (s * f for s, f in zip(info.voxel_size_um, coarsening(info.factors[:level]), strict=True))
    reader = VolumeReader(str(info.path), level, allow_incomplete)
    return Thresholded(reader, info.level_shape(level), (z, y, x), tuple(thresholds))


@dataclass(frozen=True)
class MaskTissue:
    """Masks one block of a level."""

    mask: Thresholded
    writer: VolumeWriter

    def __call__(self, block: Block) -> Receipt:
        return self.writer.write(block.write, self.mask.read(block.write))


def write_tissue(client: Client, store: Path, retries: int, near: Path | None = None) -> dict[str, Any]:
    """Mask an image whose levels are written, complete or not; what is recorded of the mask.

    The labels are made from nothing each time, to the same bytes. Failure where a block cannot be. `near`: see settled.
    """
    info = open_volume(store, allow_incomplete=True)
    level = tissue_level(info.shape, info.voxel_size_um, info.factors)
    coarser, shape, path = coarsening(info.factors[:level]), info.level_shape(level), tissue_path(store)
    thresholds = _thresholds(info, level)
    made = thresholded(info, level, thresholds, allow_incomplete=True)
    remove_tissue(store)
    shard = fitted_shard(shape, CHUNK, SHARD)
    create_volume(
        path,
        shape=shape,
        channels=None,
        dtype="uint8",
        voxel_size_um=made.voxel_size_um,
        chunk=CHUNK,
        shard=shard,
        factors=(),
    )
    task = MaskTissue(made, VolumeWriter(str(path)))
    for result in settled(client, task, list(BlockGrid(shape, shard, shard)), retries, near=near):
        if result.crc32c is None:
            raise Failure(
                f"{path}: block {result.block.index} at z, y, x {result.block.write.pairs} of the tissue mask failed: "
                f"{result.last_line}; run again to try anew, or set convert.tissue = false"
            )
    mask = VolumeReader(str(path), allow_incomplete=True)
    record = {
        "level": level,
        "coarser": list(coarser),
        "thresholds": list(thresholds),
        "rule": RULE,
        "closing_um": closing_um(made.voxel_size_um),
        "margin_voxels": MARGIN,
        "version": VERSION,
        "share": round(tissue_fraction(mask, shape, coarser, Box.of_shape(info.shape)), 6),
    }
    middle = [s * (f - 1) / 2 for s, f in zip(info.voxel_size_um, coarser, strict=True)]
    finish_volume(path, name=NAME, attributes=record, label=True, origin_um=(middle[0], middle[1], middle[2]))
    register_label(store, NAME)
    return record


def remove_tissue(store: Path) -> None:
    """Remove what an earlier conversion, or one that was killed, left of a mask."""
    if tissue_path(store).exists():
        shutil.rmtree(tissue_path(store))


def tissue_path(store: Path) -> Path:
    return store / "labels" / NAME


def tissue_in(store: Path, box: Box) -> float:
    """How much of a box (level 0) of an image is tissue, 0 to 1; 0 only if no voxel of its mask touches it."""
    info = open_volume(tissue_path(store))
    return tissue_fraction(VolumeReader(str(info.path)), info.shape, zyx(info.attributes["coarser"]), box)


def _thresholds(info: VolumeInfo, level: int) -> tuple[int, ...]:
    """Per channel the intensity above which a voxel is tissue."""
    told = [threshold_of(counts) for counts in _intensities(info, level)]
    if all(told) or not any(told):
        return tuple(told)
    in_surroundings = _intensities(info, level, told)
    return tuple(t or noise_threshold(counts) for t, counts in zip(told, in_surroundings, strict=True))


def _intensities(info: VolumeInfo, level: int, told: Sequence[int] = ()) -> NDArray[np.int64]:
    """Per channel how often each intensity occurs in a level, 0 first; read in bounded pieces.

    With thresholds `told`, 0 for channels that have none, only where no channel exceeds its own.
    """
    reader = VolumeReader(str(info.path), level, allow_incomplete=True)
    counts = np.zeros((info.channels or 1, int(np.iinfo(info.dtype).max) + 1), np.int64)
    for window in windows(Box.of_shape(info.level_shape(level)), PIECE, (0, 0, 0), (1, 1, 1)):
        piece = reader.read(window.write)
        empty = np.ones(window.write.shape, bool)
        for channel, threshold in zip(piece, told, strict=False):
            if threshold:
                empty &= channel <= threshold
        for total, channel in zip(counts, piece, strict=True):
            found = np.bincount(channel[empty])
            total[: len(found)] += found
    return counts
