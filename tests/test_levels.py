"""How volumes lie on disk: files bounded, levels made with the shard they come from."""

from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neurovol.geometry import BlockGrid, ceil_div, shard_keys
from neurovol.levels import chosen_shard, files_of, fitted_shard, fused_levels, level_factors, level_shard

CHUNK = (32, 64, 64)
volumes = st.tuples(*[st.integers(1, 700)] * 3)
voxel_sizes = st.tuples(*[st.sampled_from([0.5, 0.88, 1.0, 2.0, 5.0])] * 3)


@given(st.tuples(*[st.integers(1, 200_000)] * 3), st.sampled_from([1, 2, 4]))
def test_files_are_at_most_ten_thousand_or_that_many_per_terabyte(volume, voxel_bytes):
    shard = chosen_shard(volume, CHUNK, voxel_bytes)
    assert files_of(volume, shard) <= 10_000 * max(1, prod(volume) * voxel_bytes / 1e12)
    assert all(s % c == 0 for s, c in zip(shard, CHUNK, strict=True))


def test_small_volumes_have_small_shards_and_a_terabyte_about_ten_thousand_files():
    assert chosen_shard((512, 2048, 2048), CHUNK, 2) == (128, 256, 256)
    terabyte = (5000, 10000, 10000)
    shard = chosen_shard(terabyte, CHUNK, 2)
    assert shard == (256, 512, 512)
    assert files_of(terabyte, shard) == 20 * 20 * 20


@given(volumes, voxel_sizes, st.sampled_from([(4, 8, 8), (8, 8, 8), (32, 64, 64)]), st.sampled_from([1, 2, 4, 6]))
def test_what_is_made_of_one_shard_is_whole_shards_of_each_fused_level(volume, voxel_size, chunk, times):
    factors = level_factors(volume, voxel_size)
    shard = fitted_shard(volume, chunk, tuple(c * times for c in chunk))
    fused = fused_levels(volume, chunk, shard, factors)
    shape, blocks = volume, BlockGrid(volume, shard, shard)
    boxes = [blocks[i].write for i in range(min(40, len(blocks)))]
    for level in range(1, fused + 1):
        shape = ceil_div(shape, factors[level - 1])
        boxes = [b.downsampled(factors[level - 1]) for b in boxes]
        part = level_shard(volume, chunk, shard, factors, level, fused)
        assert all(p % c == 0 for p, c in zip(part, chunk, strict=True))
        keys = [key for box in boxes for key in shard_keys(box, part)]
        assert len(keys) == len(set(keys))  # no shard of this level is written by two blocks
        for box in boxes:
            assert all(a % p == 0 and (b % p == 0 or b == n)
                       for (a, b), p, n in zip(box.pairs, part, shape, strict=True))  # fmt: skip


@given(volumes, voxel_sizes)
def test_levels_beyond_are_cut_into_full_shards(volume, voxel_size):
    factors = level_factors(volume, voxel_size)
    shape = volume
    for level, step in enumerate(factors, 1):
        shape = ceil_div(shape, step)
        wanted = fitted_shard(shape, CHUNK, (128, 256, 256))
        assert level_shard(volume, CHUNK, (128, 256, 256), factors, level, 0) == wanted


def test_a_shard_of_broken_chunks_is_refused():
    with pytest.raises(ValueError, match=r"\(100, 64, 64\) is not a whole number of chunks"):
        fitted_shard((200, 200, 200), CHUNK, (100, 64, 64))
