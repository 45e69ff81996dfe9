"""What blosc_lz4.c makes of a chunk is what Blosc makes of it."""

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neurovol.volume.bloscchunk import blosc_lz4
from neurovol.volume.compiled import library

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


@needs
@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["noise", "smooth", "dim", "zero", "few"]),
    st.sampled_from([(64, 32, 32), (16, 64, 64), (8, 16, 96), (16, 128, 128), (32, 8, 64)]),
    st.tuples(*(st.floats(0.02, 1) for _ in range(3))),
    st.integers(0, 3),
    st.integers(1, 9),
    st.sampled_from([2**12, 2**16, 2**18, 2**19, 2**20]),
    st.integers(0, 99),
)
def test_bytes_are_blosc_s_own(kind, chunk, share, margin, level, block_bytes, seed):
    """Of whole chunks and of those at a far end, which are parts of larger arrays, at any place in these."""
    there = tuple(max(1, round(n * s)) for n, s in zip(chunk, share, strict=True))
    held = voxels(kind, tuple(n + margin for n in there), seed)[margin:, margin:, margin:]
    whole = np.zeros(chunk, np.uint16)
    whole[tuple(map(slice, there))] = held
    found = blosc_lz4(held, chunk, level, block_bytes, room(chunk))
    assert found is not None
    assert bytes(found) == by_blosc(whole, level, block_bytes)


@needs
def test_what_it_is_not_made_for_is_left_to_blosc():
    array = voxels("smooth", (8, 32, 128), 0)
    assert blosc_lz4(array, array.shape, 5, 2**14, room(array.shape)) is not None
    assert blosc_lz4(array[..., :40], (8, 32, 40), 5, 2**14, room(array.shape)) is None  # 80 bytes a row
    assert blosc_lz4(array[..., ::2], (8, 32, 64), 5, 2**14, room(array.shape)) is None  # every other voxel
    assert blosc_lz4(array, (9, 32, 128), 5, 2**14, room(array.shape)) is None  # blocks that do not fill the chunk
    assert blosc_lz4(array.astype(np.uint8), array.shape, 5, 2**14, room(array.shape)) is None
    assert blosc_lz4(array, array.shape, 5, 2**14, bytearray(array.nbytes)) is None  # no room for noise
