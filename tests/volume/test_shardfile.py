"""Shards written in one go are what zarr reads."""

from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from neurovol.volume.shardfile import NO_CHUNK, checksum, codec_for, shard_file, write_shard

CHUNK = (4, 5, 6)
sizes = st.tuples(*(st.integers(1, 2 * c) for c in CHUNK))


def _array(path: Path, shape: tuple[int, ...], dtype: str) -> zarr.Array:
    """An empty zarr array of one shard, as zarr itself makes it."""
    uint8 = dtype == "uint8"
    codec = ZstdCodec(level=1) if uint8 else BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle", typesize=2)
    channel = (1,) * (len(shape) - 3)
    return zarr.create_array(
        str(path), shape=shape, dtype=dtype, chunks=(*channel, *CHUNK), filters=None,
        shards=(*shape[:-3], *(2 * c for c in CHUNK)), compressors=[codec, Crc32cCodec()], overwrite=True,
    )  # fmt: skip


def _write(folder: Path, array: np.ndarray) -> Path:
    file = folder.joinpath("c", *("0" * array.ndim))
    write_shard(file, array, CHUNK, tuple(2 * c for c in CHUNK), codec_for(array.dtype), durable=False)
    return file


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(sizes, st.sampled_from([(), (1,), (3,)]), st.sampled_from(["uint8", "uint16"]), st.integers(0, 99))
def test_zarr_reads_what_was_written(tmp_path, size, channels, dtype, seed):
    array = np.random.default_rng(seed).integers(0, 250, (*channels, *size)).astype(dtype)
    array[..., : size[2] // 2] = 0
    stored = _array(tmp_path / "a", array.shape, dtype)
    _write(tmp_path / "a", array)
    np.testing.assert_array_equal(np.asarray(stored[...]), array)


def test_chunks_of_zeros_take_no_room_and_read_as_zeros(tmp_path):
    array = np.zeros((8, 10, 12), np.uint16)
    array[7, 9, 11] = 3
    stored = _array(tmp_path / "a", array.shape, "uint16")
    content = _write(tmp_path / "a", array).read_bytes()
    index = np.frombuffer(content[-(8 * 16 + 4) : -4], "<u8").reshape(8, 2)
    assert (index[:7] == NO_CHUNK).all()
    assert index[7].tolist() == [0, len(content) - 8 * 16 - 4]
    np.testing.assert_array_equal(np.asarray(stored[...]), array)


def test_a_flipped_byte_anywhere_is_noticed_by_zarr(tmp_path):
    array = np.random.default_rng(0).integers(0, 60000, (8, 10, 12)).astype(np.uint16)
    stored = _array(tmp_path / "a", array.shape, "uint16")
    file = _write(tmp_path / "a", array)
    whole = file.read_bytes()
    for place in range(0, len(whole), 37):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(Exception, match=r"(?i)checksum"):
            np.asarray(stored[...])


def test_the_checksum_is_that_of_the_bytes_in_c_order():
    array = np.arange(24, dtype=np.uint16).reshape(2, 3, 4)
    assert checksum(array) == checksum(array.copy()) == checksum(np.asfortranarray(array))
    assert checksum(array) != checksum(array[::-1])


def test_a_write_that_fails_leaves_the_old_shard_and_nothing_else(tmp_path):
    file = tmp_path / "c" / "0"
    with shard_file(file) as out:
        out.write(b"old")

    def torn():
        with shard_file(file) as out:
            out.write(b"new")
            raise RuntimeError("source torn")

    with pytest.raises(RuntimeError, match="source torn"):
        torn()
    assert file.read_bytes() == b"old"
    assert [f.name for f in file.parent.iterdir()] == ["0"]
