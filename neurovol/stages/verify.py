"""Stage verify: every chunk of a volume read against its checksum, its voxels against their source, and repair."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from distributed import Client
from numpy.typing import NDArray

from neurovol.blockwise.attempt import BlockTask
from neurovol.blockwise.ledger import Record, read_ledger
from neurovol.blockwise.runner import settled
from neurovol.errors import Failure, UserError
from neurovol.geometry import Block, Box, Receipt
from neurovol.progress import Progress, Report, silent
from neurovol.projectfile import checked
from neurovol.settings import Sample
from neurovol.stages.blockcopy import read_filled
from neurovol.stages.cover import Downsample, grids
from neurovol.stages.view import plain
from neurovol.volume.omezarr import VolumeInfo, VolumeReader, VolumeWriter, downsampling_of, open_volume, sweep_partial
from neurovol.volume.shardfile import checksum
from neurovol.volume.source import Source, open_source


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


def conversion_record(store: Path) -> Record | None:
    """The ledger of the conversion that made an image, where it lies beside it."""
    if open_volume(store).channels is None:
        return None  # labels or probabilities
    beside = store.absolute().with_name(f"{store.name}.convert.jsonl")
    return read_ledger(beside) or read_ledger(store.absolute().parent / "ledgers" / "convert.jsonl")


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
    info, record = open_volume(store), conversion_record(store)
    shards = shards_of(info)
    total, done = sum(map(len, shards)), 0
    for level, blocks in enumerate(shards):
        task = Check(VolumeReader(str(store), level), None if level else original)
        for result in settled(client, task, blocks, retries=0):
            done += 1
            report(Progress(f"verify {store.name}", done, total, "shards", done, 0.0, 0))
            what = result.last_line if result.error else _unlike_record(record, level, result.block, result.crc32c)
            if what:
                yield Damage(level, result.block, _file(info, level, result.block), what)


def _unlike_record(record: Record | None, level: int, block: Block, crc32c: int | None) -> str:
    """What is wrong by the ledger's checksum, which tells whole but foreign voxels too; nothing if all is well."""
    row = record.rows.get(block.index, {}) if record is not None and level == 0 else {}
    if row.get("state") == "done" and row["crc32c"] != crc32c:
        return f"its voxels have the checksum {crc32c}, the ledger recorded {row['crc32c']}"
    return ""


def _file(info: VolumeInfo, level: int, block: Block) -> Path:
    return info.shard_file(level, Box(block.write.start, block.write.start).downsampled(info.shard(level)).start)


def repair(client: Client, store: Path, damaged: Sequence[Damage], original: Original | None) -> None:
    """Redo the damaged shards: of level 0 from the source, of others from the level below.

    UserError where level 0 is damaged and no source given; Failure where a shard cannot be redone.
    """
    if original is None and any(d.level == 0 for d in damaged):
        raise UserError(
            f"{store}: shards of level 0 are damaged, which only their source can mend: give it as --source, "
            f"or build the volume anew with --redo"
        )
    sweep_partial(store)
    for level in sorted({d.level for d in damaged}):
        blocks = [d.block for d in damaged if d.level == level]
        for result in settled(client, _mender(store, level, original), blocks, retries=0):
            if result.error is not None:
                raise Failure(f"{store}: level {level} could not be repaired: {result.last_line}")


def _mender(store: Path, level: int, original: Original | None) -> BlockTask:
    info = open_volume(store)
    writer = VolumeWriter(str(store), level)
    if level == 0:
        assert original is not None  # checked by repair
        return Copy(original, writer)
    below, shape = VolumeReader(str(store), level - 1), info.level_shape(level - 1)
    return Downsample(below, writer, shape, info.factors[level - 1], downsampling_of(store))


def original_of(store: Path, sources: Sequence[Path], channels: Sequence[int] | None) -> Original:
    """What an image is said to have come from, checked as far as shape and ledger tell."""
    info, record = open_volume(store), conversion_record(store)
    if info.channels is None:
        raise UserError(f"{store}: is no image but labels or probabilities, which no source can be compared with")
    recorded = record.header.inputs["channels"] if record is not None else range(info.channels)
    paths, wanted = [source.absolute() for source in sources], tuple(channels or recorded)
    sample = checked(Sample, "--source", name="source", source=paths, channels=wanted)
    original = Original(open_source(sample, Path()), wanted, "filled_slices" in info.attributes)
    check_is_original(store, original, record)
    return original
