"""Geometry is arithmetic with known answers."""

from itertools import groupby

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neurovol.geometry import (
    BlockGrid,
    Box,
    Numbered,
    Zyx,
    ceil_div,
    check_halo,
    reflected,
    shard_keys,
    side_by_side,
    windows,
)
from neurovol.levels import level_factors

sizes = st.tuples(*[st.integers(1, 23)] * 3)
small = st.tuples(*[st.integers(1, 7)] * 3)


@st.composite
def boxes(draw: st.DrawFn, low: int = -9, high: int = 31) -> Box:
    starts = draw(st.tuples(*[st.integers(low, high - 1)] * 3))
    return Box(starts, tuple(draw(st.integers(a, high)) for a in starts))


@given(sizes, small, small)
def test_every_voxel_is_written_exactly_once(volume: Zyx, shard: Zyx, multiple: Zyx) -> None:
    block = tuple(s * m for s, m in zip(shard, multiple, strict=True))
    written = np.zeros(volume, int)
    for b in BlockGrid(volume, block, shard):
        written[b.write.slices] += 1
    assert (written == 1).all()


@given(sizes, small, small)
def test_no_two_blocks_share_a_shard(volume: Zyx, shard: Zyx, multiple: Zyx) -> None:
    block = tuple(s * m for s, m in zip(shard, multiple, strict=True))
    keys = [k for b in BlockGrid(volume, block, shard) for k in shard_keys(b.write, shard)]
    assert len(keys) == len(set(keys)) == np.prod(ceil_div(volume, shard))


@given(sizes, small, boxes(0, 25), boxes(0, 25))
def test_blocks_meeting_boxes_are_those_that_share_a_voxel(volume: Zyx, block: Zyx, a: Box, b: Box) -> None:
    grid = BlockGrid(volume, block, block)
    expected = [k.index for k in grid if k.write.intersect(a).size or k.write.intersect(b).size]
    assert [k.index for k in grid.meeting([a, b])] == expected


def test_a_block_of_broken_shards_is_refused_with_the_right_one_named() -> None:
    with pytest.raises(ValueError, match=r"block 10 is not a whole number of shards of 4.*use 12"):
        BlockGrid((31, 31, 31), (8, 10, 8), (4, 4, 4))


@given(sizes, small, small)
def test_morton_order_is_that_of_the_bits_of_z_y_and_x_in_turn(volume: Zyx, shard: Zyx, multiple: Zyx) -> None:
    grid = BlockGrid(volume, tuple(s * m for s, m in zip(shard, multiple, strict=True)), shard)

    def in_turn(index: int) -> str:
        return "".join(z + y + x for z, y, x in zip(*(f"{i:05b}" for i in place_of(grid, index)), strict=True))

    order = list(grid.morton_places())
    assert sorted(order) == list(range(len(grid)))  # every block once
    assert order == sorted(range(len(grid)), key=in_turn)


@given(sizes, small, st.integers(0, 4))
def test_in_morton_order_the_blocks_of_a_cube_follow_each_other(volume: Zyx, block: Zyx, halvings: int) -> None:
    grid = BlockGrid(volume, block, block)
    cubes = [tuple(i >> halvings for i in place_of(grid, index)) for index in grid.morton_places()]
    assert len(list(groupby(cubes))) == len(set(cubes))


@given(sizes, small, st.lists(boxes(0, 25), max_size=2), st.integers(0, 9))
def test_some_blocks_near_each_other_are_the_same_blocks(volume: Zyx, block: Zyx, some: list[Box], offset: int) -> None:
    grid = BlockGrid(volume, block, block)
    for numbered in (Numbered(grid, offset), Numbered(grid, offset, grid.places_meeting(some))):
        near, numbers = numbered.near_each_other(), {block.index for block in numbered}
        assert sorted(near, key=lambda block: block.index) == list(numbered)
        assert [near.number(i) for i in range(len(near))] == [block.index for block in near]
        in_order = [place + offset for place in grid.morton_places() if place + offset in numbers]
        assert [block.index for block in near] == in_order


def place_of(grid: BlockGrid, index: int) -> Zyx:
    z, y, x = (a // b for a, b in zip(grid[index].write.start, grid.block, strict=True))
    return z, y, x


def test_a_block_outside_the_grid_is_an_error() -> None:
    with pytest.raises(IndexError, match="block 8 of 8"):
        BlockGrid((7, 7, 7), (4, 4, 4), (4, 4, 4))[8]


@given(sizes, boxes(0, 23), small, small, st.integers(0, 3))
def test_windows_tile_their_region_and_read_from_the_stride(
    volume: Zyx, region: Box, multiple: Zyx, stride: Zyx, halos: int
) -> None:
    region = region.intersect(Box.of_shape(volume))
    window = tuple(m * s for m, s in zip(multiple, stride, strict=True))
    halo = tuple(halos * s for s in stride)
    written = np.zeros(volume, int)
    for w in windows(region, window, halo, stride):
        written[w.write.slices] += 1
        assert w.read.contains(w.write.grown(halo))
        assert all(a % s == 0 and b % s == 0 for (a, b), s in zip(w.read.pairs, stride, strict=True))
        assert all(n <= m + 2 * h for n, m, h in zip(w.read.shape, window, halo, strict=True))
    assert (written[region.slices] == 1).all()
    assert written.sum() == region.size


def test_a_window_off_the_stride_is_refused() -> None:
    with pytest.raises(ValueError, match=r"window \(8, 6, 8\) is not a positive multiple of the stride \(4, 4, 4\)"):
        list(windows(Box.of_shape((31, 31, 31)), (8, 6, 8), (0, 0, 0), (4, 4, 4)))


@given(sizes, boxes())
def test_reading_beyond_the_volume_reflects_as_numpy_does(volume: Zyx, box: Box) -> None:
    array = np.arange(np.prod(volume)).reshape(volume)
    plan = reflected(box, volume)
    assert Box.of_shape(volume).contains(plan.inner)
    got = array[plan.inner.slices]
    for axis, take in enumerate(plan.take):
        if take is not None:
            got = np.take(got, take, axis=axis)
    padded = np.pad(array, 40, mode="reflect")
    assert np.array_equal(got, padded[box.shifted((40, 40, 40)).slices])


def test_an_unaligned_halo_is_refused_with_the_right_one_named() -> None:
    with pytest.raises(ValueError, match=r"\(4, 10, 10\) is not a multiple.*stride \(8, 8, 8\); use \(8, 16, 16\)"):
        check_halo((4, 10, 10), reach=(7, 13, 13), stride=(8, 8, 8))


def test_a_halo_within_the_reach_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(20, 20, 20\) is smaller than the network's reach.*use \(24, 24, 24\)"):
        check_halo((20, 20, 20), reach=(23, 23, 23), stride=(4, 4, 4))


@given(boxes(), boxes(0, 31))
def test_a_box_moved_into_another_lies_inside_or_is_centred(box: Box, outer: Box) -> None:
    moved = box.moved_into(outer)
    assert moved.shape == box.shape
    for (a, b), (low, high) in zip(moved.pairs, outer.pairs, strict=True):
        if b - a <= high - low:
            assert low <= a <= b <= high
        else:
            assert abs((low - a) - (b - high)) <= 1


@given(boxes(0, 31), small)
def test_downsampling_a_box_and_back_holds_it(box: Box, factors: Zyx) -> None:
    if box.size:
        assert box.downsampled(factors).upsampled(factors).contains(box)


@given(boxes(), boxes())
def test_intersection_is_what_both_contain(a: Box, b: Box) -> None:
    both = a.intersect(b)
    if both.size:
        assert a.contains(both)
        assert b.contains(both)
        assert a.touches(b)


def test_boxes_that_share_a_face_touch_and_a_gap_parts_them() -> None:
    left, right = Box((0, 0, 0), (5, 5, 5)), Box((0, 0, 7), (5, 5, 9))
    assert left.touches(Box((0, 0, 5), (5, 5, 9)))
    assert not left.touches(right)
    assert left.touches(right, gap=2)


def test_a_backward_box_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"lies beyond its stop"):
        Box((0, 5, 0), (1, 4, 1))


@given(st.tuples(*[st.integers(1, 3000)] * 3), st.tuples(*[st.floats(0.1, 9)] * 3))
def test_pyramids_end_small_and_never_make_voxels_less_isotropic(shape: Zyx, size: tuple[float, ...]) -> None:
    for step in level_factors(shape, size):
        assert max(step) == 2
        shape = ceil_div(shape, step)
    assert max(shape) <= 64


def test_z_is_not_halved_before_voxels_are_near_isotropic() -> None:
    assert level_factors((600, 600, 600), (2.0, 0.88, 0.88))[:2] == [(1, 2, 2), (2, 2, 2)]


@given(
    st.tuples(*(st.integers(1, 30),) * 3),
    st.tuples(*(st.integers(1, 9),) * 3),
    st.integers(1, 5),
    st.sets(st.integers(0, 60)),
)
def test_blocks_side_by_side_make_up_one_box_and_none_is_lost(volume, block, most, done):
    blocks = [b for b in BlockGrid(volume, block, block) if b.index not in done]
    groups = list(side_by_side(blocks, lambda: most))
    assert [b for group in groups for b in group] == blocks
    for group in groups:
        assert len(group) <= most
        whole = Box(group[0].write.start, group[-1].write.stop)
        assert sum(b.write.size for b in group) == whole.size
