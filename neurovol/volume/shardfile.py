"""One shard as bytes: chunks encoded one by one, and the index that says where each lies (zarr v3 sharding codec).

    | chunk crc32c | chunk crc32c | … | index: offset, size of every chunk | crc32c |

zarr-python encodes the same through layers of generic codecs, chunk by chunk in an event loop; a whole
shard in one go is a loop of a few lines, and several times as fast. What it writes zarr reads (tested).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, Literal

import google_crc32c
import imagecodecs
import numpy as np
from numpy.typing import NDArray

from neurovol.geometry import Zyx
from neurovol.volume.bloscchunk import shuffled
from neurovol.volume.direct import Output, output
from neurovol.volume.packing import CRC_BYTES, Bytes, Copied, Packer, crc32c
from neurovol.volume.workspace import reused

NO_CHUNK = np.uint64(2**64 - 1)  # of a chunk that is zero throughout: it takes no room in the file
_INDEX = np.dtype("<u8")


@dataclass(frozen=True)
class Codec:
    """How chunks are compressed; the parameters of zarr's codecs of the same name."""

    name: Literal["blosc", "zstd"]
    level: int
    within: Literal["lz4", "zstd"] = "zstd"  # what blosc compresses by; this and the rest are of blosc only
    shuffle: Literal["noshuffle", "shuffle", "bitshuffle"] = "noshuffle"
    itemsize: int = 1
    blocksize: int = 0  # bytes that blosc compresses at once; 0: as it likes

    def packer(self, chunk: Zyx, dtype: np.dtype[Any]) -> Packer:
        """What fills chunks (z, y, x) of uint8 or uint16 and compresses them, on this thread."""
        if (self.within, self.shuffle, dtype) == ("lz4", "bitshuffle", np.dtype(np.uint16)) and self.blocksize:
            quick = shuffled(chunk, self.level, self.blocksize)
            if quick is not None:
                return quick
        size = prod(chunk) * dtype.itemsize
        most = size + size // 8 + 1024 + CRC_BYTES
        if self.name == "zstd":
            return Copied(chunk, dtype, partial(imagecodecs.zstd_encode, level=self.level), most)
        encode = partial(
            imagecodecs.blosc_encode,
            level=self.level,
            compressor=self.within,
            shuffle=self.shuffle,
            typesize=self.itemsize,
            blocksize=self.blocksize,
            numthreads=1,
        )
        return Copied(chunk, dtype, encode, most)


def codec_for(dtype: np.dtype[Any], wanted: Literal["auto", "lz4", "zstd"] = "auto") -> Codec:
    """By tests/bench/bench_codecs.py, on phantom and mouse cortex: bitshuffle suits uint16, and hurts uint8.

    Of bitshuffled uint16, lz4 leaves as much as zstd to within 4 %, at twice the speed; of uint8 half as much again.
    """
    itemsize = dtype.itemsize
    if wanted == "lz4" or (wanted == "auto" and itemsize > 1):
        return Codec("blosc", 5, "lz4", "bitshuffle", itemsize, 2**19)
    return Codec("zstd", 1) if itemsize == 1 else Codec("blosc", 1, "zstd", "bitshuffle", itemsize, 2**19)


def checksum(array: NDArray[Any]) -> int:
    """crc32c of an array's bytes in C order."""
    return int(google_crc32c.extend(0, np.ascontiguousarray(array)))


class ShardEncoder:
    """Compresses the chunks of one shard to its file, in any order, and keeps the index of where each lies."""

    def __init__(self, file: Output, counts: tuple[int, ...], packer: Packer) -> None:
        self._file, self._packer = file, packer
        self._counts = counts
        self._layers: list[tuple[tuple[int, ...], tuple[int, ...], list[int]]] = []  # place, chunks, what each takes

    def layer(self, place: tuple[int, ...], memory: Bytes) -> None:
        """Write chunks that are side by side, (y, x, bytes of a chunk), whose memory the packer filled.

        `place` is where the first of them lies, (…, z, y, x). Of one whose voxels are all 0 nothing is written.
        """
        along_y, along_x = memory.shape[:2]
        taken: list[int] = []
        for row in memory:  # is contiguous, the layer may be part of a larger one
            end = len(taken) + along_x
            while len(taken) < end:
                room = self._file.room(self._packer.most_bytes)
                found = self._packer.compress(row[len(taken) - end :], room)
                self._file.keep(sum(found))
                taken += found
        self._layers.append((place, (along_y, along_x), taken))

    def finish(self) -> None:
        """Write the index, which closes the file."""
        sizes = np.array([n for _, _, taken in self._layers for n in taken], _INDEX)
        entries = np.stack([np.cumsum(sizes) - sizes, sizes], axis=-1)
        entries[sizes == 0] = NO_CHUNK
        index, done = np.full((*self._counts, 2), NO_CHUNK, _INDEX), 0
        for (*above, y, x), (along_y, along_x), taken in self._layers:
            layer, here = index[tuple(above)], entries[done : done + len(taken)]
            layer[y : y + along_y, x : x + along_x] = here.reshape(along_y, along_x, 2)
            done += len(taken)
        content = index.tobytes()
        self._file.write(content + crc32c(content))


@contextmanager
def shard_file(file: Path, durable: bool = True) -> Iterator[Output]:
    """A shard's file to write to, which appears whole or not at all; on disk after the `with`, but for its folders."""
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    try:
        handle = partial.open("wb", buffering=0)
    except FileNotFoundError:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle = partial.open("wb", buffering=0)
    try:
        with handle:
            out = output(handle, durable)
            try:
                yield out
                out.flush()
            finally:
                out.settle()
            if durable:
                os.fsync(handle.fileno())
        partial.replace(file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_shard(file: Path, array: NDArray[Any], chunk: Zyx, shard: Zyx, codec: Codec, durable: bool = True) -> None:
    """Write a shard whole or not at all; on disk when this returns, but for the names of its folders.

    Layer by layer of chunks, as ShardStream has them. `array` is (…, z, y, x), smaller than the shard only at the
    volume's end. Chunks hold one channel each. What of the last chunks lies beyond the volume is 0.
    """
    counts = (*array.shape[:-3], *(s // c for s, c in zip(shard, chunk, strict=True)))
    packer = codec.packer(chunk, array.dtype)
    memory = reused("chunk", (1, 1, prod(chunk) * array.itemsize), np.dtype(np.uint8))
    with shard_file(file, durable) as out:
        encoder = ShardEncoder(out, counts, packer)
        for z, *channel, y, x in product(*map(range, (counts[-3], *counts[:-3], *counts[-2:]))):
            cell = tuple(slice(p * c, (p + 1) * c) for p, c in zip((z, y, x), chunk, strict=True))
            part = array[tuple(channel)][cell]
            if part.size and (part[0, 0].any() or part.any()):
                packer.place(part, memory, 0)
                packer.blank(memory, part.shape[0])
                encoder.layer((*channel, z, y, x), memory)
        encoder.finish()
