"""How conversion copies a source: block by block, from decoded slices where they cannot be read in part."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from distributed import Client
from numpy.typing import NDArray

from neurovol.blockwise.runner import Meter, refuse_quarantined, run_blocks, settled
from neurovol.errors import Failure, UserError
from neurovol.geometry import Block, Box, Receipt, Zyx, windows
from neurovol.stages.view import SampleView
from neurovol.volume.histogram import Counter
from neurovol.volume.omezarr import VolumeWriter
from neurovol.volume.pyramid import downsample
from neurovol.volume.source import Source
from neurovol.volume.stored import write_text
from neurovol.volume.tiffmap import CACHE_BYTES
from neurovol.volume.unpacked import Unpack, Unpacked, planes_of, record_failure

SLAB = 8  # slices; even, so that the level above can be made of each slab alone

_workspace = threading.local()  # first touch of fresh memory costs as much as copying into it


WORKER_BYTES = 200_000_000  # of a worker process before it has done anything: its libraries
DRIVER_BYTES = 300_000_000  # of this process, Dask's scheduler within it


def worker_bytes(view: SampleView) -> int:
    """Memory of a worker that copies a sample, beside its libraries': a block with its levels, or a slice decoded."""
    block = prod(view.layout["shard"]) * view.voxel_bytes
    compressed = view.source.grain != (1, 1, 1)
    slice_bytes = prod(view.shape[1:]) * view.source.dtype.itemsize
    # levels made with level 0 come to at most half of it; a decoder holds a slice as it came, and decoded, at once
    needed: int = max(block * 3 // 2 + compressed * CACHE_BYTES, view.unpacks * slice_bytes * 5 // 2)
    return needed


def copiers(views: Iterable[SampleView], allowed_bytes: int, cores: int) -> int:
    """How many workers may copy at once; UserError where memory does not do for one."""
    workers = cores
    for view in views:
        each = worker_bytes(view) + WORKER_BYTES
        fitting = (allowed_bytes - DRIVER_BYTES) // each
        if fitting < 1:
            raise UserError(
                f"sample {view.name}: convert.allowed_bytes is {allowed_bytes / 1e9:.3g} GB, but copying it takes "
                f"{(each + DRIVER_BYTES) / 1e9:.3g} GB: a block of {list(view.layout['shard'])} voxels with its "
                f"levels, or one decoded slice, and the libraries; allow that much, or set a smaller convert.shard"
            )
        workers = min(workers, fitting)
    return workers


@dataclass(frozen=True)
class Convert:
    """Copies one block from the source, with its part of the levels that are made of it alone, and its histogram."""

    source: Source
    channels: tuple[int, ...]
    path: str
    fused: tuple[Zyx, ...]  # factors of those levels
    notes: str  # folder for what is noted of each block
    fill: bool = False  # zeros where a slice cannot be read
    durable: bool = True  # False, as the next, only to measure what it costs
    histogram: bool = True

    def __call__(self, block: Block) -> Receipt:
        array, level_1, bad = self._read(block)
        if bad:
            write_text(self._note(block, "bad"), json.dumps(bad))
        receipt = VolumeWriter(self.path, 0, self.durable).write(block.write, array)
        box = block.write
        for level, factors in enumerate(self.fused, 1):
            box = box.downsampled(factors)
            array = level_1 if level == 1 else downsample(array, factors, "mean")
            VolumeWriter(self.path, level, self.durable).write(box, array)
        return receipt

    def _note(self, block: Block, kind: str) -> Path:
        return Path(self.notes) / f"{block.index}.{kind}"

    def _read(self, block: Block) -> tuple[NDArray[Any], NDArray[Any], dict[int, str]]:
        """The voxels, the first level above, and the slices that could not be read with the reason.

        What is made of the voxels is made a few slices at a time, while they are in the processor's cache.
        """
        channels, box, dtype = len(self.channels), block.write, self.source.dtype
        out = _reused((channels, *box.shape), dtype)
        bad: dict[int, str] = {}
        factors = self.fused[0] if self.fused else (1, 1, 1)
        level_1 = np.empty((channels, *(box.downsampled(factors).shape if self.fused else (0, 0, 0))), dtype)
        counter = Counter(channels, dtype)
        for slab in self._slabs(box):
            part = slab.within(box)
            voxels, found = self._read_slab(slab, out[(slice(None), *part)])
            bad |= found
            if self.histogram:
                counter.add(voxels)
            if self.fused:
                coarse = slab.downsampled(factors).within(box.downsampled(factors))
                level_1[(slice(None), *coarse)] = downsample(voxels, factors, "mean")
        if self.histogram:
            counter.histogram().save(self._note(block, "npz"))
        return out, level_1, bad

    def _slabs(self, box: Box) -> Iterator[Box]:
        """The block a few slices at a time, unless the source decodes more than one at once."""
        depth = SLAB if self.source.grain[0] == 1 else box.shape[0]
        return (window.write for window in windows(box, (depth, *box.shape[1:]), (0, 0, 0), (1, 1, 1)))

    def _read_slab(self, slab: Box, out: NDArray[Any]) -> tuple[NDArray[Any], dict[int, str]]:
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
    for plane in planes_of(box):
        target = out[:, plane.index - box.start[0]][:, None]
        try:
            source.read(plane.write, channels, target)
        except Failure as error:
            target[...] = 0
            bad[plane.index] = str(error)
    return out, bad


def _reused(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """An array on this thread's own memory, which the next call takes again."""
    wanted = prod(shape) * dtype.itemsize
    if getattr(_workspace, "bytes", np.empty(0, np.uint8)).nbytes < wanted:
        _workspace.bytes = np.empty(wanted, np.uint8)
    array: NDArray[Any] = _workspace.bytes[:wanted].view(dtype).reshape(shape)
    return array


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
