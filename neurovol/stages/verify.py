"""Stage verify: every chunk of a volume read against its checksum, its voxels against their source, and repair."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from distributed import Client
from numpy.typing import NDArray

from neurovol.blockwise.attempt import Attempt, BlockTask
from neurovol.blockwise.ledger import Record, read_ledger
from neurovol.blockwise.runner import settled
from neurovol.errors import Failure, UserError
from neurovol.geometry import Block, Box, Receipt
from neurovol.progress import Progress, Report, silent
from neurovol.projectfile import checked
from neurovol.samplesettings import Sample
from neurovol.stages.blockcopy import read_filled
from neurovol.stages.cover import Downsample, grids
from neurovol.stages.view import plain
from neurovol.volume.omezarr import VolumeInfo, VolumeReader, VolumeWriter, downsampling_of, open_volume, sweep_partial
from neurovol.volume.shardfile import checksum
from neurovol.volume.source import Source, open_source

RETRIES = 2  # what is damaged is so each time; a worker that dies, or a read that fails once, is no damage


@dataclass(frozen=True)
class Original:
    """What a volume was converted from: the source, which of its channels, and whether bad slices were filled."""

    source: Source
    channels: tuple[int, ...]
    fill: bool = False

    def read(self, box: Box) -> NDArray[Any]:
        """(c, z, y, x) as the conversion read it."""
        if not self.fill:
            return self.source.read(box, self.channels)
        out = np.empty((len(self.channels), *box.shape), self.source.dtype)
        return read_filled(self.source, box, self.channels, out)[0]


@dataclass(frozen=True)
class Check:
    """Reads a shard, which fails where it is damaged, and compares it with the source where one is given."""

    reader: VolumeReader
    original: Original | None = None

    def __call__(self, block: Block) -> Receipt:
        there = self.reader.read(block.write)
        if self.original is not None:
            wrong = int(np.count_nonzero(there != self.original.read(block.write)))
            if wrong:
                raise Failure(f"{wrong} of {there.size} voxels differ from the source's")
        return Receipt(block.write, checksum(there))


@dataclass(frozen=True)
class Copy:
    """Copies a block of level 0 from the source once more."""

    original: Original
    writer: VolumeWriter

    def __call__(self, block: Block) -> Receipt:
        return self.writer.write(block.write, self.original.read(block.write))


@dataclass(frozen=True)
class Damage:
    """A shard that is not what was written: which, and in what way."""

    level: int
    block: Block
    file: Path
    what: str

    def __str__(self) -> str:
        return f"{self.file} (level {self.level}, z, y, x {[list(p) for p in self.block.write.pairs]}): {self.what}"


def record_of(store: Path) -> Record | None:
    """The finished ledger of the step that made a volume, where it lies as a project or a single conversion has it."""
    store = store.absolute()
    if store.parent.name == "labels":
        places = [store.parent.parent.parent / "ledgers" / f"annotate-{store.name}.jsonl"]
    elif "@" in store.name:
        model, folder = store.name.removesuffix(".ome.zarr").partition("@")[2], store.parent / "ledgers"
        of_test = model.endswith(".test")
        stages = ("evaluate",) if of_test else ("segment", "pseudolabel")
        places = [folder / f"{stage}@{model.removesuffix('.test')}.jsonl" for stage in stages]
    else:
        places = [store.with_name(f"{store.name}.convert.jsonl"), store.parent / "ledgers" / "convert.jsonl"]
    records = (read_ledger(place) for place in places)
    return next((record for record in records if record is not None and record.finished is not None), None)


def check_is_original(store: Path, original: Original, record: Record | None) -> None:
    """Refuse a source whose shape is not the volume's, or that is not the one it was converted from."""
    info = open_volume(store)
    shape = tuple(original.source.shape[1:])
    if (shape, original.source.dtype, len(original.channels)) != (info.shape, info.dtype, info.channels):
        raise UserError(
            f"{store}: holds {info.channels} channel(s) of {info.shape} voxels of {info.dtype}, the source given "
            f"{len(original.channels)} of {shape} of {original.source.dtype}; give the source it was converted from"
        )
    if record is not None and record.header.inputs["source"] != plain(original.source.identity()):
        raise UserError(
            f"{store}: was converted from another source, or this one has changed since (names, sizes and times of "
            f"its files are in the ledger); convert it anew rather than mixing the two"
        )


def shards_of(info: VolumeInfo) -> list[list[Block]]:
    """Per level every shard that must be there, as a block."""
    found = []
    for level, grid in enumerate(grids(info)):
        counts = grid.counts
        keys = (np.unravel_index(i, counts) for i in range(len(grid)))
        found.append(
            [grid[i] for i, key in enumerate(keys) if info.must_exist(level, (int(key[0]), int(key[1]), int(key[2])))]
        )
    return found


def damages(client: Client, store: Path, original: Original | None = None, report: Report = silent) -> Iterator[Damage]:
    """Every damaged shard of a finished volume, all levels; as they are found."""
    info, record = open_volume(store), record_of(store)
    shards, firsts = shards_of(info), accumulate(map(len, grids(info)), initial=0)
    total, done, voxels, start = sum(map(len, shards)), 0, 0, time.monotonic()
    for level, (first, blocks) in enumerate(zip(firsts, shards, strict=False)):
        task = Check(VolumeReader(str(store), level), None if level else original)
        for result in settled(client, task, blocks, RETRIES):
            done += 1
            voxels += result.block.write.size
            report(Progress(f"verify {store.name}", done, total, "shards", done, time.monotonic() - start, voxels))
            what = result.last_line if result.error else _unlike_record(record, first + result.block.index, result)
            if what:
                yield Damage(level, result.block, _file(info, level, result.block), what)


def recorded_count(store: Path) -> int:
    """How many of a volume's shards have their checksum in a ledger; levels made with level 0 have none there."""
    info, record = open_volume(store), record_of(store)
    if record is None:
        return 0
    firsts = accumulate(map(len, grids(info)), initial=0)
    return sum(n + b.index in record.done for n, blocks in zip(firsts, shards_of(info), strict=False) for b in blocks)


def _unlike_record(record: Record | None, number: int, result: Attempt) -> str:
    """What is wrong by the ledger's checksum, which tells whole but foreign voxels too; nothing if all is well.

    Levels that are written with the one below have no rows of their own.
    """
    row = record.rows.get(number, {}) if record is not None else {}
    if row.get("state") == "done" and row["crc32c"] != result.crc32c:
        return f"its voxels have the checksum {result.crc32c}, the ledger recorded {row['crc32c']}"
    return ""


def _file(info: VolumeInfo, level: int, block: Block) -> Path:
    return info.shard_file(level, Box(block.write.start, block.write.start).downsampled(info.shard(level)).start)


def repair(client: Client, store: Path, damaged: Sequence[Damage], level_0: BlockTask | None, way_out: str) -> None:
    """Redo the damaged shards: of level 0 by the task that writes them, of others from the level below.

    UserError, which tells the way out, where level 0 is damaged and no task is given; Failure where a shard cannot be
    redone.
    """
    if level_0 is None and any(d.level == 0 for d in damaged):
        raise UserError(f"{store}: shards of level 0 are damaged, which {way_out}")
    sweep_partial(store)
    for level in sorted({d.level for d in damaged}):
        blocks = [d.block for d in damaged if d.level == level]
        task = level_0 if level == 0 and level_0 is not None else _from_below(store, level)
        for result in settled(client, task, blocks, RETRIES):
            if result.error is not None:
                raise Failure(f"{store}: level {level} could not be repaired: {result.last_line}")


def _from_below(store: Path, level: int) -> Downsample:
    info = open_volume(store)
    below, shape = VolumeReader(str(store), level - 1), info.level_shape(level - 1)
    return Downsample(below, VolumeWriter(str(store), level), shape, info.factors[level - 1], downsampling_of(store))


def copying(store: Path, original: Original) -> Copy:
    """The task that writes level 0 of an image anew."""
    return Copy(original, VolumeWriter(str(store)))


def original_of(store: Path, sources: Sequence[Path], channels: Sequence[int] | None) -> Original:
    """What an image is said to have come from, checked as far as shape and ledger tell."""
    info, record = open_volume(store), record_of(store)
    if info.channels is None:
        raise UserError(f"{store}: is no image but labels or probabilities, which no source can be compared with")
    recorded = record.header.inputs["channels"] if record is not None else range(info.channels)
    paths, wanted = [source.absolute() for source in sources], tuple(channels or recorded)
    sample = checked(Sample, "--source", name="source", source=paths, channels=wanted)
    original = Original(open_source(sample, Path()), wanted, "filled_slices" in info.attributes)
    check_is_original(store, original, record)
    return original
