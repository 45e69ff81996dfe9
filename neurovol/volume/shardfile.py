"""One shard as bytes: chunks encoded one by one, and the index that says where each lies (zarr v3 sharding codec).

    | chunk crc32c | chunk crc32c | … | index: offset, size of every chunk | crc32c |

zarr-python encodes the same through layers of generic codecs, chunk by chunk in an event loop; a whole
shard in one go is a loop of a few lines, and several times as fast. What it writes zarr reads (tested).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import google_crc32c
import numpy as np
from numcodecs import Blosc, Zstd
from numpy.typing import NDArray

from neurovol.geometry import Zyx

NO_CHUNK = np.uint64(2**64 - 1)  # of a chunk that is zero throughout: it takes no room in the file
CRC_BYTES = 4
_INDEX = np.dtype("<u8")


@dataclass(frozen=True)
class Codec:
    """How chunks are compressed; the parameters of zarr's codecs of the same name."""

    name: str  # "blosc" (zstd within) or "zstd"
    level: int
    shuffle: Literal["noshuffle", "shuffle", "bitshuffle"]  # of blosc only
    itemsize: int

    def compressor(self) -> Callable[[Any], bytes]:
        """Chunk to bytes; lets other threads run meanwhile."""
        if self.name == "zstd":
            encoder: Any = Zstd(self.level)
        else:
            shuffle = {"noshuffle": Blosc.NOSHUFFLE, "shuffle": Blosc.SHUFFLE, "bitshuffle": Blosc.BITSHUFFLE}
            encoder = Blosc("zstd", self.level, shuffle[self.shuffle], typesize=self.itemsize)
        return encoder.encode  # type: ignore[no-any-return]


def codec_for(dtype: np.dtype[Any]) -> Codec:
    """Measured on phantom and mouse cortex (tests/bench/bench_codecs.py): bitshuffle suits uint16, and hurts uint8."""
    if dtype.itemsize == 1:
        return Codec("zstd", 1, "noshuffle", 1)
    return Codec("blosc", 1, "bitshuffle", dtype.itemsize)


def checksum(array: NDArray[Any]) -> int:
    """crc32c of an array's bytes in C order."""
    return int(google_crc32c.extend(0, np.ascontiguousarray(array)))


def shard_bytes(array: NDArray[Any], chunk: Zyx, shard: Zyx, codec: Codec) -> Iterator[bytes]:
    """The pieces of a shard's file, in order; `array` is (…, z, y, x), smaller than the shard only at the volume's end.

    Chunks hold one channel each. What of the last chunks lies beyond the volume is 0.
    """
    compress = codec.compressor()
    counts = (*array.shape[:-3], *(s // c for s, c in zip(shard, chunk, strict=True)))
    index = np.full((*counts, 2), NO_CHUNK, _INDEX)
    offset = 0
    buffer = np.zeros(chunk, array.dtype)
    for place in product(*map(range, counts)):
        if not _fill(buffer, array, place, chunk):
            continue
        data = compress(buffer)
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


def _crc(data: bytes) -> bytes:
    return int(google_crc32c.value(data)).to_bytes(CRC_BYTES, "little")


def write_shard(file: Path, pieces: Iterator[bytes], durable: bool = True) -> None:
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
