"""How conversion copies a source: block by block, from decoded slices where they cannot be read in part."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain, groupby
from math import prod
from pathlib import Path

from distributed import Client

from neurovol.blockwise.runner import Meter, refuse_quarantined, run_blocks, settled
from neurovol.errors import UserError
from neurovol.geometry import Block, BlockGrid, Box, ceil_div, round_up, zyx
from neurovol.levels import coarsening
from neurovol.stages.assemble import Assemble, AssembleLevels
from neurovol.stages.blockcopy import Convert, slab_depth
from neurovol.stages.cover import write_coarser
from neurovol.stages.view import SampleView
from neurovol.volume.direct import BUFFER, BUFFERS
from neurovol.volume.omezarr import VolumeInfo, VolumeWriter, open_volume
from neurovol.volume.tiffmap import CACHE_BYTES
from neurovol.volume.unpacked import Unpack, Unpacked, planes_of, record_failure

TOGETHER_BYTES = 160_000_000  # of blocks that one worker copies at once
PLANES, PLANES_BYTES = 8, 2**26  # decoded by one future: many small ones, or one large one
WORKER_BYTES = 200_000_000  # of a worker process before it has done anything: its libraries
DRIVER_BYTES = 300_000_000  # of this process, Dask's scheduler within it


def worker_bytes(view: SampleView) -> int:
    """Memory of a worker that copies a sample, beside its libraries: of blocks side by side, or of slices decoded."""
    compressed = view.source.grain != (1, 1, 1)
    slice_bytes = prod(view.shape[1:]) * view.source.dtype.itemsize
    copying = most_together(view) * _block_bytes(view) + BUFFERS * BUFFER
    # a decoder holds a slice as it came, and decoded, at once
    unpacking = view.unpacks * (2 * len(view.channels) + 3) * slice_bytes // 2
    needed: int = max(copying + compressed * CACHE_BYTES, unpacking)
    return needed


def most_together(view: SampleView) -> int:
    """How many blocks, side by side along x, a worker may copy at once."""
    if view.source.grain[0] > 1:
        return 1  # slabs are as deep as a block
    along_x = ceil_div(view.shape, view.layout["shard"])[2]
    return max(1, min(along_x, TOGETHER_BYTES // _block_bytes(view)))


def _block_bytes(view: SampleView) -> int:
    """What is held of a block: of each level a slab, and a layer of chunks."""
    fused = view.layout["factors"][: view.fused]
    depth, y, x = zyx(view.layout["shard"])
    slab, held = slab_depth(view.source.grain, fused, depth), 0
    for factors in ((1, 1, 1), *fused):
        slab, y, x = ceil_div((slab, y, x), factors)
        layer = prod(round_up(n, c) for n, c in zip((1, y, x), view.chunk, strict=True))
        held += (slab * y * x + layer) * view.voxel_bytes
    return held


def copiers(views: Iterable[SampleView], allowed_bytes: int, cores: int) -> int:
    """How many workers may copy at once; UserError where memory does not do for one."""
    workers = cores
    for view in views:
        each = worker_bytes(view) + WORKER_BYTES
        fitting = (allowed_bytes - DRIVER_BYTES) // each
        if fitting < 1:
            raise UserError(
                f"sample {view.name}: convert.allowed_bytes is {allowed_bytes / 1e9:.3g} GB, but copying it takes "
                f"{(each + DRIVER_BYTES) / 1e9:.3g} GB: what it holds of a block of "
                f"{list(view.layout['shard'])} voxels, or of a slice decoded, and the libraries; "
                f"allow that much, or set a smaller convert.shard"
            )
        workers = min(workers, fitting)
    return workers


def copy_levels(
    client: Client,
    task: Convert,
    blocks: Sequence[Sequence[Block]],
    meter: Meter,
    *,
    retries: int,
    most: int,
    scratch: Path | None,
) -> None:
    """Level 0 with what is made of its blocks, by way of scratch where a folder for it is given; then other levels."""
    info = open_volume(Path(task.path), allow_incomplete=True)
    if scratch is not None:
        run_unpacked(client, task, blocks[0], meter, retries, scratch, most)
    else:
        run_blocks(client, task, blocks[0], meter, retries=retries, together=most)
    first = 1 + info.fused
    after = first + len(task.parted)
    parted = [level for level in range(first, after) if blocks[level]]
    if parted:
        assemble = AssembleLevels(
            tuple(blocks[level][0].index for level in parted), tuple(_assemble(task, info, level) for level in parted)
        )
        run_blocks(client, assemble, list(chain(*(blocks[level] for level in parted))), meter, retries=retries)
    notes = Path(task.notes) if task.histogram else None
    write_coarser(client, info.path, blocks, meter, "mean", retries, notes, after)


def _assemble(task: Convert, info: VolumeInfo, level: int) -> Assemble:
    return Assemble(
        task.notes,
        BlockGrid(info.shape, info.shard(0), info.shard(0)),
        coarsening(info.factors[:level]),
        level,
        info.level_shape(level),
        len(task.channels),
        info.dtype,
        VolumeWriter(task.path, level, task.durable),
        task.histogram,
    )


def run_unpacked(
    client: Client, task: Convert, blocks: Sequence[Block], meter: Meter, retries: int, scratch: Path, most: int = 1
) -> None:
    """Layer by layer of shards: decode its slices to scratch, each once, then copy its blocks from there.

    Up to `most` blocks are copied at once. Those that fail are set aside, all others finish; Failure in the end if
    there are any.
    """
    shutil.rmtree(scratch, ignore_errors=True)  # after a power cut its files may be whole in name only
    try:
        for _, layer in groupby(blocks, key=lambda b: b.write.pairs[0]):
            todo = [b for b in layer if b.index not in meter.ledger.done]
            if todo:
                source = _unpacked(client, task, todo[0].write, retries, scratch)
                from_scratch = replace(task, source=source)
                run_blocks(client, from_scratch, todo, meter, retries=retries, refuse=False, together=most)
                shutil.rmtree(scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    refuse_quarantined(meter.ledger, len(blocks))


def _unpacked(client: Client, task: Convert, box: Box, retries: int, scratch: Path) -> Unpacked:
    """The slices of a layer, decoded; one that cannot be is noted instead, and fails the blocks that need it."""
    shape = task.source.shape
    scratch.mkdir(parents=True)
    plane_bytes = prod(shape[2:]) * len(task.channels) * task.source.dtype.itemsize
    _check_room(scratch, box.shape[0] * plane_bytes)
    layer = Box((box.start[0], 0, 0), (box.stop[0], *shape[2:]))
    unpack = Unpack(task.source, task.channels, str(scratch))
    at_once = max(1, min(PLANES, PLANES_BYTES // plane_bytes))
    failed = [
        r.block for r in settled(client, unpack, planes_of(layer, at_once), 0, near=scratch) if r.error is not None
    ]
    alone = [plane for block in failed for plane in planes_of(block.write)]  # whichever of them it was
    for result in settled(client, unpack, alone, retries, near=scratch):
        if result.error is not None:
            record_failure(str(scratch), result.block.index, result.last_line)
    return Unpacked(str(scratch), shape, task.source.dtype, task.channels)


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder}: decoded slices need {needed / 1e9:.3g} GB of scratch there, and {free / 1e9:.3g} GB are free; "
            "free space, or name a folder with more as convert.scratch"
        )
