"""How conversion copies a source: block by block, from decoded slices where they cannot be read in part."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import accumulate, groupby, product
from math import prod
from operator import mul
from pathlib import Path
from typing import Any

from distributed import Client
from numpy.typing import NDArray

from neurovol.blockwise.runner import Meter, refuse_quarantined, run_blocks, settled
from neurovol.errors import Failure, UserError
from neurovol.geometry import Block, Box, Receipt, Zyx, ceil_div, round_up, windows, zyx
from neurovol.stages.view import SampleView
from neurovol.volume.histogram import Counter, rows_counted, save_levels
from neurovol.volume.omezarr import VolumeWriter
from neurovol.volume.pyramid import downsample
from neurovol.volume.source import Source
from neurovol.volume.stored import write_text
from neurovol.volume.tiffmap import CACHE_BYTES
from neurovol.volume.unpacked import Unpack, Unpacked, planes_of, record_failure
from neurovol.volume.workspace import reused

SLAB = 8  # slices read at once, and what is made of them made while they are in the processor's cache

WORKER_BYTES = 200_000_000  # of a worker process before it has done anything: its libraries
DRIVER_BYTES = 300_000_000  # of this process, Dask's scheduler within it


def worker_bytes(view: SampleView) -> int:
    """Memory of a worker that copies a sample, beside its libraries: its part of a block, or a slice decoded."""
    shard, fused = view.layout["shard"], view.layout["factors"][: view.fused]
    plane = prod(shard[1:]) * view.voxel_bytes
    finer = accumulate((f[1] * f[2] for f in fused), mul, initial=1)
    layers = sum(view.chunk[0] * plane // f for f in finer)  # of chunks, one of each level
    slab = slab_depth(view.source.grain, fused, shard[0]) * plane
    compressed = view.source.grain != (1, 1, 1)
    slice_bytes = prod(view.shape[1:]) * view.source.dtype.itemsize
    # means are taken of a slab; a decoder holds a slice as it came, and decoded, at once
    unpacking = view.unpacks * (2 * len(view.channels) + 3) * slice_bytes // 2
    needed: int = max(layers + 2 * slab + compressed * CACHE_BYTES, unpacking)
    return needed


def slab_depth(grain: Zyx, fused: Iterable[Zyx], depth: int) -> int:
    """How many slices of a block are read at once: whole ones of all levels; all where the source decodes many at once.

    >>> slab_depth((1, 1, 1), [(1, 2, 2), (2, 2, 2)], 128), slab_depth((64, 64, 64), [], 128)
    (8, 128)
    """
    return round_up(SLAB, prod(f[0] for f in fused)) if grain[0] == 1 else depth


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


@dataclass(frozen=True)
class Convert:
    """Copies one block, which is one shard, with its part of the levels that are made of it alone; counts values."""

    source: Source
    channels: tuple[int, ...]
    path: str
    fused: tuple[Zyx, ...]  # factors of those levels
    notes: str  # folder for what is noted of each block
    fill: bool = False  # zeros where a slice cannot be read
    durable: bool = True  # False, as the next, only to measure what it costs
    histogram: bool = True

    def __call__(self, block: Block) -> Receipt:
        boxes = list(accumulate(self.fused, Box.downsampled, initial=block.write))
        counters = [self._counter(level) for level in range(len(boxes))]
        bad: dict[int, str] = {}
        with ExitStack() as stack:
            writers = [VolumeWriter(self.path, level, self.durable) for level in range(len(boxes))]
            streams = [stack.enter_context(w.stream(box)) for w, box in zip(writers, boxes, strict=True)]
            for slab in self._slabs(block.write):
                voxels, found = self._read(slab)
                bad |= found
                for level, stream in enumerate(streams):
                    if level:
                        voxels = downsample(voxels, self.fused[level - 1], "mean")
                        slab = slab.downsampled(self.fused[level - 1])
                    stream.add(voxels)
                    if self.histogram:
                        counters[level].add(voxels, slab.start)
            receipt, *_ = [stream.finish() for stream in streams]
        if bad:
            write_text(self._note(block, "bad"), json.dumps(bad))
        else:
            self._note(block, "bad").unlink(missing_ok=True)  # of an earlier attempt
        if self.histogram:
            save_levels([counter.histogram() for counter in counters], self._note(block, "npz"))
        return receipt

    def _counter(self, level: int) -> Counter:
        shape = zyx(self.source.shape[1:])
        for factors in self.fused[:level]:
            shape = ceil_div(shape, factors)
        return Counter(len(self.channels), self.source.dtype, rows_counted(shape))

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


def run_unpacked(client: Client, task: Convert, blocks: list[Block], meter: Meter, retries: int, scratch: Path) -> None:
    """Layer by layer of shards: decode its slices to scratch, each once, then copy its blocks from there.

    Blocks that fail are set aside, all others finish; Failure in the end if there are any.
    """
    shutil.rmtree(scratch, ignore_errors=True)  # after a power cut its files may be whole in name only
    try:
        for _, layer in groupby(blocks, key=lambda b: b.write.pairs[0]):
            todo = [b for b in layer if b.index not in meter.ledger.done]
            if todo:
                source = _unpacked(client, task, todo[0].write, retries, scratch)
                run_blocks(client, replace(task, source=source), todo, meter, retries=retries, refuse=False)
                shutil.rmtree(scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    refuse_quarantined(meter.ledger, len(blocks))


def _unpacked(client: Client, task: Convert, box: Box, retries: int, scratch: Path) -> Unpacked:
    """The slices of a layer, decoded; one that cannot be is noted instead, and fails the blocks that need it."""
    shape = task.source.shape
    scratch.mkdir(parents=True)
    _check_room(scratch, prod(box.shape[:1]) * prod(shape[2:]) * len(task.channels) * task.source.dtype.itemsize)
    planes = planes_of(Box((box.start[0], 0, 0), (box.stop[0], *shape[2:])))
    for result in settled(client, Unpack(task.source, task.channels, str(scratch)), planes, retries):
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
