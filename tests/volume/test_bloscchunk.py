"""What blosc_lz4.c makes of a chunk is what Blosc makes of it."""

from dataclasses import replace
from itertools import accumulate

import google_crc32c
import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neurovol.volume.bloscchunk import Shuffled, shuffled
from neurovol.volume.compiled import library
from neurovol.volume.packing import Copied, Packer
from neurovol.volume.shardfile import codec_for
from neurovol.volume.workspace import reused

needs = pytest.mark.skipif(library() is None, reason="neurovol was installed without a C compiler")


def by_blosc(chunk: np.ndarray, level: int, block_bytes: int) -> bytes:
    return bytes(
        imagecodecs.blosc_encode(
            np.ascontiguousarray(chunk), level=level, compressor="lz4", shuffle="bitshuffle", typesize=2,
            blocksize=block_bytes, numthreads=1, out=room(chunk.shape),
        )
    )  # fmt: skip


def room(chunk: tuple[int, int, int]) -> bytearray:
    size = 2 * int(np.prod(chunk))
    return bytearray(size + size // 8 + 1024)


def voxels(kind: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 65536, shape).astype(np.uint16)
    smooth = (np.indices(shape).sum(0) * 7 + noise % 5).astype(np.uint16)
    return {"noise": noise, "smooth": smooth, "dim": noise % 16, "zero": noise * 0, "few": noise // 65000}[kind]


def layer(chunk: tuple[int, int, int], along: tuple[int, int]) -> np.ndarray:
    """Memory that is not fresh."""
    memory = reused("layer of a test", (*along, 2 * int(np.prod(chunk))), np.dtype(np.uint8))
    memory[...] = 0xA5
    return memory


def compressed(packer: Packer, chunks: np.ndarray, rooms: int = 1) -> list[bytes]:
    """Each, or nothing of one that is 0; with its crc32c behind it, and nothing beyond the room given."""
    found: list[bytes] = []
    size = rooms * packer.most_bytes
    while len(found) < len(chunks):
        out = bytearray(size + 9)
        taken = packer.compress(chunks[len(found) :], memoryview(out)[:size])
        assert taken
        assert not any(out[sum(taken) + packer.most_bytes :])  # Blosc may use the room it was given, and no more
        assert not any(out[size:])
        for end, n in zip(accumulate(taken), taken, strict=True):
            chunk, crc = bytes(out[end - n : end][:-4]), bytes(out[end - n : end][-4:])
            assert not n or crc == google_crc32c.value(chunk).to_bytes(4, "little")
            found.append(chunk)
    return found


@needs
@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["noise", "smooth", "dim", "zero", "few"]),
    st.sampled_from([(64, 32, 32), (16, 64, 64), (8, 16, 96), (16, 128, 128), (32, 8, 64), (4, 2, 1024)]),
    st.tuples(st.floats(0.02, 1), st.floats(0.02, 2), st.floats(0.02, 2)),
    st.lists(st.integers(1, 63), max_size=3).map(sorted),
    st.integers(0, 3),
    st.integers(1, 9),
    st.sampled_from([2**12, 2**16, 2**18, 2**19, 2**20]),
    st.booleans(),
    st.integers(1, 4),
    st.integers(0, 99),
)
def test_bytes_are_blosc_s_own(kind, chunk, share, cuts, margin, level, block_bytes, newest, rooms, seed):
    """Of whole chunks and of those at a far end, of slices that come in any slabs out of larger arrays."""
    there = tuple(max(1, round(n * s)) for n, s in zip(chunk, share, strict=True))
    held = voxels(kind, tuple(n + margin for n in there), seed)[margin:, margin:, margin:]
    along = tuple(-(-n // c) for n, c in zip(there[1:], chunk[1:], strict=True))
    whole = np.zeros((chunk[0], *(n * c for n, c in zip(along, chunk[1:], strict=True))), np.uint16)
    whole[tuple(map(slice, there))] = held
    packer, memory = replace(shuffled(chunk, level, block_bytes), newest=newest), layer(chunk, along)
    for slab, z in zip(np.split(held, cuts), [0, *cuts], strict=True):
        packer.place(slab, memory, z) if len(slab) else None
    packer.blank(memory, there[0])
    for y, row in enumerate(memory):
        cells = np.split(whole[:, y * chunk[1] : (y + 1) * chunk[1]], along[1], axis=2)
        wanted = [by_blosc(cell, level, block_bytes) if cell.any() else b"" for cell in cells]
        assert compressed(packer, row, rooms) == wanted


@needs
def test_voxels_that_are_not_in_whole_rows_are_shuffled_too():
    chunk, held = (8, 32, 64), voxels("smooth", (8, 32, 128), 0)[..., ::2]
    packer, memory = shuffled(chunk, 5, 2**14), layer(chunk, (1, 1))
    packer.place(held, memory, 0)
    assert compressed(packer, memory[0]) == [by_blosc(held, 5, 2**14)]


@needs
def test_memory_that_does_not_begin_where_c_wants_it_is_refused():
    chunk = (2, 32, 128)
    packer, memory = shuffled(chunk, 5, 2**14), layer((2, 64, 128), (1, 1)).ravel()
    for start in (1, 32):
        with pytest.raises(ValueError, match=f"begins {start} bytes after a multiple of 64"):
            packer.place(np.ones(chunk, np.uint16), memory[start : start + 2 * np.prod(chunk)].reshape(1, 1, -1), 0)


@needs
def test_what_it_is_not_made_for_is_left_to_blosc():
    chunk = (8, 32, 128)
    assert isinstance(shuffled(chunk, 5, 2**14), Shuffled)
    assert shuffled((8, 32, 40), 5, 2**14) is None  # 80 bytes a row
    assert shuffled((8, 2, 64), 5, 2**14) is None  # no plane of whole tiles
    assert shuffled((9, 32, 128), 5, 2**14) is None  # blocks that do not fill the chunk
    assert shuffled(chunk, 0, 2**14) is None  # not compressed
    lz4 = {dtype: codec_for(np.dtype(dtype), "lz4") for dtype in ("uint8", "uint16")}
    assert isinstance(lz4["uint16"].packer(chunk, np.dtype("uint16")), Shuffled)
    assert isinstance(lz4["uint8"].packer(chunk, np.dtype("uint8")), Copied)


def test_what_is_left_to_blosc_is_given_to_it_as_voxels() -> None:
    chunk, held = (16, 32, 40), voxels("smooth", (12, 60, 70), 0)
    packer, memory = codec_for(held.dtype).packer(chunk, held.dtype), layer(chunk, (2, 2))
    assert isinstance(packer, Copied)
    packer.place(held, memory, 0)
    packer.blank(memory, 12)
    whole = np.pad(held, ((0, 4), (0, 4), (0, 10)))
    for y, row in enumerate(memory):
        cells = np.split(whole[:, y * 32 : (y + 1) * 32], 2, axis=2)
        assert compressed(packer, row) == [by_blosc(cell, 5, 2**19) for cell in cells]
