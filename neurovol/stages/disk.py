"""What a step that is not done may still take of a disk: bytes, and files and folders, each of which is an inode.

An upper bound, for voxels that do not compress at all: real tissue takes half to two thirds of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod

from neurovol.geometry import BlockGrid, Box, Zyx, ceil_div
from neurovol.levels import coarsening, files_of, fitted_shard, level_shard, parted_levels
from neurovol.project import State
from neurovol.stages.tissue import CHUNK, SHARD
from neurovol.stages.view import SampleView
from neurovol.volume.tissue import tissue_level
from neurovol.volume.unpacked import scratch_bytes

ROW_BYTES = 400  # of a ledger, a block's; a traceback of a block set aside is longer, and rare
LEDGER_INODES = 8  # the ledger, its folder, and what workers note of the blocks they are at
INDEX_BYTES = 16  # of a shard's index, a chunk
NPZ_BYTES = 600  # of numpy's file, an array's name and header, twice
CHUNK_BYTES = 64  # that a chunk which does not compress takes beside its voxels: headers and checksum


@dataclass(frozen=True)
class DiskNeed:
    """Bytes and inodes, at most."""

    bytes: int = 0
    inodes: int = 0

    def __add__(self, other: DiskNeed) -> DiskNeed:
        return DiskNeed(self.bytes + other.bytes, self.inodes + other.inodes)

    def __bool__(self) -> bool:
        return bool(self.bytes or self.inodes)

    def left(self, state: State) -> DiskNeed:
        """What of it a step in that state has yet to take: all that it has not, nothing where it is done.

        >>> DiskNeed(1000, 10).left(State("begun", done=3, total=4))
        DiskNeed(bytes=250, inodes=3)
        """
        if state.kind == "done":
            return DiskNeed()
        if state.kind != "begun" or not state.total:
            return self
        left = max(0, state.total - state.done)
        return DiskNeed(-(-self.bytes * left // state.total), -(-self.inodes * left // state.total))


NOTHING = DiskNeed()

# Of an image: the preview, at most 2048 × 2048 pixels of three bytes, and the histogram; the folders of labels.
BESIDE_IMAGE = DiskNeed(2**24, 16)
# A report holds its pictures; an allowance rather than a bound. Those seen so far are below a tenth of it.
REPORT = DiskNeed(50_000_000, 8)


def volume_need(
    view: SampleView,
    voxel_bytes: int,
    *,
    image: bool = False,
    boxes: Sequence[Box] | None = None,
    pyramid: bool = True,
) -> DiskNeed:
    """A volume over a sample with all of its levels and its ledger: of its channels if it is the `image`, else of one.

    `voxel_bytes` are of one channel. With `boxes` (level 0), only what lies in these is written.
    """
    factors = view.layout["factors"] if pyramid else []
    channels, fused = (len(view.channels), view.fused) if image else (1, 0)
    total = DiskNeed(0, 2 + LEDGER_INODES)  # its own folder and metadata
    levels = list(accumulate(factors, ceil_div, initial=view.shape))
    for level, shape in enumerate(levels):
        shard = level_shard(view.shape, view.chunk, view.layout["shard"], factors, level, fused)
        coarser = coarsening(factors[:level])
        parts = [Box.of_shape(shape)] if boxes is None else [box.downsampled(coarser) for box in boxes]
        total += level_need(shape, shard, view.chunk, parts, voxel_bytes * channels, channels)
    return total


def level_need(shape: Zyx, shard: Zyx, chunk: Zyx, parts: Sequence[Box], voxel_bytes: int, channels: int) -> DiskNeed:
    """One level: shards lie at c/[channel/]z/y/x, and chunks at a volume's end are as large as others."""
    chunks = sum(box.downsampled(chunk).size for box in parts)
    voxels = chunks * prod(chunk)
    shards = [box.downsampled(shard).shape for box in parts]
    whole = len(parts) == 1 and parts[0] == Box.of_shape(shape)
    files = sum(map(prod, shards)) if whole else len(BlockGrid(shape, shard, shard).places_meeting(parts))
    folders = 4 + sum(z * (1 + y) for z, y, _ in shards)  # the level's own, its metadata, c and the channels'
    index = files * (INDEX_BYTES * channels * prod(shard) // prod(chunk) + 4)
    data = voxels * voxel_bytes + voxels * voxel_bytes // 1024 + chunks * channels * CHUNK_BYTES
    return DiskNeed(data + index + files * ROW_BYTES, files + folders)


def weights_need(weight_bytes: int) -> DiskNeed:
    """A training, of a network whose spec tells its `weight_bytes`, which are three times those on disk.

    The state of an unfinished one holds the optimizer's two numbers a weight too, and the next is written beside it.
    """
    return DiskNeed(3 * weight_bytes + 2**20, 8 + LEDGER_INODES)


def annotation_need(view: SampleView, role: str) -> DiskNeed:
    """The labels of a role, and the numbers of single neurons where there are any, four bytes each."""
    boxes = view.boxes(role)
    numbers = view.annotations[role].has_instances
    return volume_need(view, 1, boxes=boxes) + (
        volume_need(view, 4, boxes=boxes, pyramid=False) if numbers else NOTHING
    )


def conversion_need(view: SampleView) -> DiskNeed:
    """An image with its tissue mask, its preview, and what is noted of its blocks until it is finished."""
    image = volume_need(view, view.source.dtype.itemsize, image=True)
    return image + _tissue_need(view) + _notes_need(view) + BESIDE_IMAGE


def _tissue_need(view: SampleView) -> DiskNeed:
    level = tissue_level(view.shape, view.voxel_size_um, view.layout["factors"])
    shape = ceil_div(view.shape, coarsening(view.layout["factors"][:level]))
    return level_need(shape, fitted_shard(shape, CHUNK, SHARD), CHUNK, [Box.of_shape(shape)], 1, 1)


def _notes_need(view: SampleView) -> DiskNeed:
    """Of each block its histograms, a value and a count of eight bytes each, and its part of coarse levels."""
    factors, shard = view.layout["factors"], view.layout["shard"]
    parted = range(1 + view.fused, 1 + parted_levels(view.shape, shard, factors))
    parts = sum(prod(ceil_div(shard, coarsening(factors[:level]))) for level in parted) * view.voxel_bytes
    values = min(prod(shard), 256**view.source.dtype.itemsize)
    arrays = (1 + view.fused) * len(view.channels)
    blocks = sum(shard_counts(view))
    return DiskNeed(blocks * (arrays * (16 * values + NPZ_BYTES) + parts), blocks + 1)


def shard_counts(view: SampleView) -> list[int]:
    """How many shards each level of an image has."""
    layout = view.layout
    counts = []
    for level in range(1 + len(layout["factors"])):
        shape = ceil_div(view.shape, coarsening(layout["factors"][:level]))
        shard = level_shard(view.shape, view.chunk, layout["shard"], layout["factors"], level, view.fused)
        counts.append(files_of(shape, shard))
    return counts


def scratch_need(view: SampleView) -> DiskNeed:
    """The decoded slices of one layer of shards, a file each; nothing where none are decoded beforehand."""
    if not view.unpacks:
        return NOTHING
    shard = view.layout["shard"]
    return DiskNeed(scratch_bytes(view.shape, shard, view.voxel_bytes), min(view.shape[0], shard[0]) + 1)
