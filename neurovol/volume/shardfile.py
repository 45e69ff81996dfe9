"""One shard as bytes: chunks encoded one by one, and the index that says where each lies (zarr v3 sharding codec).

    | chunk crc32c | chunk crc32c | … | index: offset, size of every chunk | crc32c |

zarr-python encodes the same through layers of generic codecs, chunk by chunk in an event loop; a whole
shard in one go is a loop of a few lines, and several times as fast. What it writes zarr reads (tested).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
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

Piece = bytes | memoryview

NO_CHUNK = np.uint64(2**64 - 1)  # of a chunk that is zero throughout: it takes no room in the file
CRC_BYTES = 4
_INDEX = np.dtype("<u8")


@dataclass(frozen=True)
class Codec:
    """How chunks are compressed; the parameters of zarr's codecs of the same name."""

    name: Literal["blosc", "zstd"]  # blosc with zstd within
    level: int
    shuffle: Literal["noshuffle", "shuffle", "bitshuffle"] = "noshuffle"  # of blosc only
    itemsize: int = 1
    blocksize: int = 0  # bytes that blosc compresses at once; 0: as it likes

    def compressor(self, chunk_bytes: int) -> Callable[[NDArray[Any]], bytes | bytearray]:
        """Chunk to bytes, which last until the next chunk is compressed; lets other threads run meanwhile."""
        out = bytearray(chunk_bytes + chunk_bytes // 8 + 1024)  # fresh memory for each costs a tenth
        if self.name == "zstd":
            return partial(imagecodecs.zstd_encode, level=self.level, out=out)
        return partial(
            imagecodecs.blosc_encode,
            level=self.level,
            compressor="zstd",
            shuffle=self.shuffle,
            typesize=self.itemsize,
            blocksize=self.blocksize,
            numthreads=1,
            out=out,
        )


def codec_for(dtype: np.dtype[Any]) -> Codec:
    """By tests/bench/bench_codecs.py, on phantom and mouse cortex: bitshuffle suits uint16, and hurts uint8.

    Left to itself, blosc cuts chunks into blocks so small that it takes twice as long, and finds less.
    """
    if dtype.itemsize == 1:
        return Codec("zstd", 1)
    return Codec("blosc", 1, "bitshuffle", dtype.itemsize, 2**19)


def checksum(array: NDArray[Any]) -> int:
    """crc32c of an array's bytes in C order."""
    return int(google_crc32c.extend(0, np.ascontiguousarray(array)))


def shard_bytes(array: NDArray[Any], chunk: Zyx, shard: Zyx, codec: Codec) -> Iterator[Piece]:
    """The pieces of a shard's file, in order; each lasts until the next is taken.

    `array` is (…, z, y, x), smaller than the shard only at the volume's end. Chunks hold one channel each.
    What of the last chunks lies beyond the volume is 0.
    """
    compress = codec.compressor(prod(chunk) * array.itemsize)
    counts = (*array.shape[:-3], *(s // c for s, c in zip(shard, chunk, strict=True)))
    index = np.full((*counts, 2), NO_CHUNK, _INDEX)
    offset = 0
    buffer = np.zeros(chunk, array.dtype)
    for place in product(*map(range, counts)):
        if not _fill(buffer, array, place, chunk):
            continue
        data = memoryview(compress(buffer))
        index[place] = offset, len(data) + CRC_BYTES
        offset += len(data) + CRC_BYTES
        yield data
        yield _crc(data)
    yield index.tobytes()
    yield _crc(index.tobytes())


def _fill(buffer: NDArray[Any], array: NDArray[Any], place: tuple[int, ...], chunk: Zyx) -> bool:
    """Copy a chunk's voxels to the buffer; False where there are none but zeros."""
    *channel, z, y, x = place
    cell = tuple(slice(p * c, (p + 1) * c) for p, c in zip((z, y, x), chunk, strict=True))
    part = array[tuple(channel)][cell]
    if part.shape != buffer.shape:
        buffer.fill(0)
    nz, ny, nx = part.shape
    np.copyto(buffer[:nz, :ny, :nx], part)
    # most chunks hold something in their first row, or nothing at all
    return bool(buffer[0, 0].any() or buffer.any())


def _crc(data: Piece) -> bytes:
    return int(google_crc32c.value(np.frombuffer(data, np.uint8))).to_bytes(CRC_BYTES, "little")


def write_shard(file: Path, pieces: Iterable[Piece], durable: bool = True) -> None:
    """Write a shard's file whole or not at all; on disk when this returns, but for the names of its folders."""
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    try:
        handle = partial.open("wb")
    except FileNotFoundError:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle = partial.open("wb")
    try:
        with handle:
            handle.writelines(pieces)
            handle.flush()
            if durable:
                os.fsync(handle.fileno())
        partial.replace(file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
