"""A shard written layer by layer is the shard written at once."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neurovol.geometry import Box, Zyx
from neurovol.volume.omezarr import VolumeReader, VolumeWriter, create_volume
from neurovol.volume.shards import codec_of
from neurovol.volume.shardstream import ShardStream

CHUNK, SHARD, SHAPE = (4, 8, 8), (8, 16, 16), (13, 19, 31)
BY_C = (4, 16, 32), (8, 32, 64), (13, 39, 121)  # which blosc_lz4.c shuffles

Sizes = tuple[Zyx, Zyx, Zyx]


def _volume(
    path: Path, channels: int = 1, codec: str = "auto", dtype: str = "uint16", sizes: Sizes = (CHUNK, SHARD, SHAPE)
) -> VolumeWriter:
    chunk, shard, shape = sizes
    create_volume(path, shape=shape, channels=channels, dtype=dtype, voxel_size_um=(2, 1, 1), chunk=chunk, shard=shard,
                  factors=[], codec=codec)  # fmt: skip
    return VolumeWriter(str(path))


def _streamed(writer: VolumeWriter, box: Box, voxels: np.ndarray, sums: list[int], cuts: list[int]) -> object:
    """Summed up in slabs that end at `sums`, written in those that end at `cuts`."""
    with writer.shard(box) as shard:
        stream = ShardStream([shard])
        for slab in np.split(voxels, sums, axis=1):
            stream.sum_up(slab)
        for slab in np.split(voxels, cuts, axis=1):
            stream.take(slab)
        (receipt,) = stream.finish()
        return receipt


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80, deadline=None)
@given(
    st.integers(1, 3),
    st.sampled_from([(CHUNK, SHARD, SHAPE), BY_C]),
    st.sampled_from([(0, 0, 0), (1, 1, 1), (1, 0, 1)]),
    *[st.lists(st.integers(1, 12), max_size=3).map(sorted)] * 2,
    st.sampled_from(["uint8", "uint16"]),
    st.integers(0, 99),
)
def test_however_a_shard_is_cut_into_slabs_its_file_and_receipt_are_the_same(
    tmp_path_factory: pytest.TempPathFactory, channels: int, sizes: Sizes, key: Zyx, sums: list[int], cuts: list[int],
    dtype: str, seed: int,
) -> None:  # fmt: skip
    folder = tmp_path_factory.mktemp("v")
    _, shard, shape = sizes
    box = Box(key, tuple(k + 1 for k in key)).upsampled(shard).intersect(Box.of_shape(shape))
    held = np.random.default_rng(seed).integers(0, 250, (channels, *(n + 1 for n in box.shape))).astype(dtype)
    held[..., : box.shape[2] // 2] = 0
    voxels = held[:, 1:, 1:, 1:]
    sums, cuts = ([min(n, box.shape[0]) for n in ends] for ends in (sums, cuts))
    whole, slabs = (_volume(folder / name, channels, dtype=dtype, sizes=sizes) for name in "ab")
    first = Box((0, 0, 0), shard)
    full = np.full((channels, *shard), 9, dtype)
    _streamed(slabs, first, full, [], [])  # memory that is not fresh
    whole.write(first, full)
    assert _streamed(slabs, box, voxels, sums, cuts) == whole.write(box, voxels)
    np.testing.assert_array_equal(VolumeReader(str(folder / "b"), allow_incomplete=True).read(box), voxels)
    name = Path("0", "c", "0", *map(str, key))
    assert (folder / "a" / name).read_bytes() == (folder / "b" / name).read_bytes()


def test_a_shard_that_lacks_slices_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    writer, box = _volume(tmp_path / "v"), Box((0, 0, 0), SHARD)
    with pytest.raises(ValueError, match=r"\(1, 9, 16, 16\) .* are no slices of .*, of which 8 are left"):
        _streamed(writer, box, np.ones((1, 9, 16, 16), np.uint16), [], [])
    with pytest.raises(ValueError, match=r"\(1, 8, 15, 16\) .* are no slices of"):
        _streamed(writer, box, np.ones((1, 8, 15, 16), np.uint16), [], [])
    with pytest.raises(ValueError, match="of 8 slices of shards 4 were taken, 4 summed up"):
        _streamed(writer, box, np.ones((1, 4, 16, 16), np.uint16), [], [])
    assert not list((tmp_path / "v").rglob("*.partial"))
    assert not (tmp_path / "v" / "0" / "c" / "0" / "0" / "0" / "0").exists()


def test_only_one_whole_shard_can_be_streamed(tmp_path: Path) -> None:
    writer = _volume(tmp_path / "v")
    with pytest.raises(ValueError, match="is not one shard"), writer.shard(Box((0, 0, 0), (8, 16, 31))):
        pass
    with pytest.raises(ValueError, match="two blocks would write one shard"), writer.shard(Box((0, 0, 0), (8, 8, 16))):
        pass


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_a_volume_is_continued_with_the_codec_it_was_begun_with(tmp_path: Path, codec: str, dtype: str) -> None:
    import zarr

    writer = _volume(tmp_path / "v", codec=codec, dtype=dtype)
    create_volume(tmp_path / "v", shape=SHAPE, channels=1, dtype=dtype, voxel_size_um=(2, 1, 1), chunk=CHUNK,
                  shard=SHARD, factors=[])  # fmt: skip
    box, voxels = Box((0, 0, 0), SHARD), np.arange(8 * 16 * 16).reshape(1, *SHARD).astype(dtype)
    writer.write(box, voxels)
    array = zarr.open_array(str(tmp_path / "v" / "0"), mode="r")
    found = codec_of(array)
    assert "lz4" in (found.name, found.within) if codec == "lz4" else "lz4" not in (found.name, found.within)
    np.testing.assert_array_equal(np.asarray(array[(slice(None), *box.slices)]), voxels)
