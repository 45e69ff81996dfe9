"""One shard as bytes: chunks encoded one by one, and the index that says where each lies (zarr v3 sharding codec).

    | chunk crc32c | chunk crc32c | … | index: offset, size of every chunk | crc32c |

zarr-python encodes the same through layers of generic codecs, chunk by chunk in an event loop; a whole
shard in one go is a loop of a few lines, and several times as fast. What it writes zarr reads (tested).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Literal

import google_crc32c
import imagecodecs
import numpy as np
from numpy.typing import NDArray

from neurovol.geometry import Zyx
from neurovol.volume.bloscchunk import blosc_lz4
from neurovol.volume.workspace import held, reused

Piece = bytes | memoryview

NO_CHUNK = np.uint64(2**64 - 1)  # of a chunk that is zero throughout: it takes no room in the file
CRC_BYTES = 4
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

    def compressor(self, chunk: Zyx, itemsize: int) -> Callable[[NDArray[Any]], Piece]:
        """A function that compresses chunks to bytes, which last until this thread compresses the next.

        It takes what of the chunk lies within the volume, (z, y, x), which may be part of a larger array; the rest
        is 0. Meanwhile other threads run.
        """
        size = prod(chunk) * itemsize
        out = held(("compressed", size), lambda: bytearray(size + size // 8 + 1024))  # fresh for each costs a tenth
        encode: Callable[[Any], bytes | bytearray]
        if self.name == "zstd":
            encode = partial(imagecodecs.zstd_encode, level=self.level, out=out)
        else:
            encode = partial(
                imagecodecs.blosc_encode,
                level=self.level,
                compressor=self.within,
                shuffle=self.shuffle,
                typesize=self.itemsize,
                blocksize=self.blocksize,
                numthreads=1,
                out=out,
            )
        quick = (self.within, self.shuffle, self.itemsize) == ("lz4", "bitshuffle", 2) and self.blocksize > 0

        def compress(voxels: NDArray[Any]) -> Piece:
            found = blosc_lz4(voxels, chunk, self.level, self.blocksize, out) if quick else None
            return memoryview(encode(_whole(voxels, chunk))) if found is None else found

        return compress


def _whole(voxels: NDArray[Any], chunk: Zyx) -> NDArray[Any]:
    """A chunk, C-contiguous; of a part of one, the rest is 0."""
    if voxels.shape == chunk and voxels.flags.c_contiguous:
        return voxels
    whole = reused("chunk", chunk, voxels.dtype)
    if voxels.shape != chunk:
        whole.fill(0)
    nz, ny, nx = voxels.shape
    whole[:nz, :ny, :nx] = voxels
    return whole


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
    """Encodes the chunks of one shard, in any order, and keeps the index of where each lies."""

    def __init__(self, counts: tuple[int, ...], chunk: Zyx, itemsize: int, codec: Codec) -> None:
        self._compress = codec.compressor(chunk, itemsize)
        self._index = np.full((*counts, 2), NO_CHUNK, _INDEX)
        self._offset = 0

    def chunk(self, place: tuple[int, ...], voxels: NDArray[Any]) -> tuple[Piece, ...]:
        """The pieces of the chunk at that place, which last until this thread's next one; none where all voxels are 0.

        `voxels` (z, y, x) is a chunk, or what of it lies within the volume; the rest is 0.
        """
        # most chunks hold something in their first row, or nothing at all
        if not (voxels[0, 0].any() or voxels.any()):
            return ()
        data = self._compress(voxels)
        self._index[place] = self._offset, len(data) + CRC_BYTES
        self._offset += len(data) + CRC_BYTES
        return data, _crc(data)

    def index(self) -> tuple[Piece, ...]:
        """What closes the file."""
        index = self._index.tobytes()
        return index, _crc(index)


def shard_bytes(array: NDArray[Any], chunk: Zyx, shard: Zyx, codec: Codec) -> Iterator[Piece]:
    """The pieces of a shard's file, layer by layer of chunks (as ShardStream has them); each lasts until the next.

    `array` is (…, z, y, x), smaller than the shard only at the volume's end. Chunks hold one channel each.
    What of the last chunks lies beyond the volume is 0.
    """
    counts = (*array.shape[:-3], *(s // c for s, c in zip(shard, chunk, strict=True)))
    encoder = ShardEncoder(counts, chunk, array.itemsize, codec)
    for z, *channel, y, x in product(*map(range, (counts[-3], *counts[:-3], *counts[-2:]))):
        cell = tuple(slice(p * c, (p + 1) * c) for p, c in zip((z, y, x), chunk, strict=True))
        part = array[tuple(channel)][cell]
        if part.size:
            yield from encoder.chunk((*channel, z, y, x), part)
    yield from encoder.index()


def _crc(data: Piece) -> bytes:
    return int(google_crc32c.value(np.frombuffer(data, np.uint8))).to_bytes(CRC_BYTES, "little")


@contextmanager
def shard_file(file: Path, durable: bool = True) -> Iterator[BinaryIO]:
    """A shard's file to write to, which appears whole or not at all; on disk after the `with`, but for its folders."""
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    try:
        handle = partial.open("wb")
    except FileNotFoundError:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle = partial.open("wb")
    try:
        with handle:
            yield handle
            handle.flush()
            if durable:
                os.fsync(handle.fileno())
        partial.replace(file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_shard(file: Path, pieces: Iterable[Piece], durable: bool = True) -> None:
    """Write a shard's file whole or not at all; on disk when this returns, but for the names of its folders."""
    with shard_file(file, durable) as handle:
        handle.writelines(pieces)
