"""How overlaps are blended: shares, borders, boxes."""

import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neurovol.geometry import Box
from neurovol.volume import blending
from neurovol.volume.blending import Tile, cells_of, fuse


def tile_of(corner, array):
    """A tile at a corner, of a (c, z, y, x) array."""
    box = Box.of_shape(array.shape[1:]).shifted(corner)

    def read(wanted, channels, out):
        part = array[list(channels)][:, *wanted.within(box)]
        if out is None:
            return part
        out[...] = part
        return out

    return Tile(box, read)


def fused(tiles, box, channels=(0,), dtype=np.uint16):
    out = np.full((len(channels), *box.shape), 7, dtype)
    fuse(tiles, box, channels, out)
    return out


def flat(shape, value, dtype=np.uint16):
    return np.full((1, *shape), value, dtype)


def in_float64(tiles, arrays, shape):
    """The formula of the module, voxel by voxel of each tile, in double precision."""
    total, weights = np.zeros(shape), np.zeros(shape)
    for tile, array in zip(tiles, arrays, strict=True):
        ramps = []
        for n, reach in zip(tile.box.shape, (16, np.inf, np.inf), strict=True):
            t = [min(1, min(i + 0.5, n - i - 0.5) / min(reach, n / 2)) for i in range(n)]
            ramps.append([v * v * (3 - 2 * v) for v in t])
        weight = np.einsum("i,j,k", *ramps)
        total[tile.box.slices] += weight * array[0]
        weights[tile.box.slices] += weight
    return np.floor(np.divide(total, weights, out=np.zeros(shape), where=weights > 0) + 0.5)


def test_two_flat_tiles_cross_over_in_a_smooth_monotone_s():
    a, b = tile_of((0, 0, 0), flat((1, 40, 300), 100)), tile_of((0, 0, 250), flat((1, 40, 300), 200))
    line = fused([a, b], Box((0, 7, 0), (1, 8, 550)))[0, 0, 0].astype(int)
    assert (line[:250] == 100).all()
    assert (line[300:] == 200).all()
    steps = np.diff(line)
    assert steps.min() == 0
    assert steps.max() <= 5  # 100 over 50 voxels in an S: about 4 at its steepest, 0 at its ends
    np.testing.assert_array_equal(line + line[::-1], 300)
    assert steps[248:254].max() <= 1
    assert steps[296:302].max() <= 1


def test_no_border_shows_along_z_where_one_tile_ends_within_another():
    a, b = tile_of((0, 0, 0), flat((40, 20, 20), 0)), tile_of((5, 0, 0), flat((60, 20, 20), 10000))
    line = fused([a, b], Box((0, 9, 9), (65, 10, 10)))[0, :, 0, 0].astype(int)
    assert (line[:5] == 0).all()
    assert (line[40:] == 10000).all()
    assert abs(np.diff(line)).max() < 1000  # a hard border would be a step of 5000


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiles_that_agree_are_blended_to_what_they_agree_on(dtype):
    truth = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (1, 13, 31, 41), dtype, endpoint=True)
    corners = [(0, 0, 0), (1, 0, 19), (2, 13, 0), (3, 11, 17), (0, 5, 7)]
    tiles = [tile_of(c, truth[:, c[0] : c[0] + 10, c[1] : c[1] + 18, c[2] : c[2] + 22]) for c in corners]
    whole = Box.of_shape((13, 31, 41))
    held = np.zeros(whole.shape, bool)
    for tile in tiles:
        held[tile.box.slices] = True
    np.testing.assert_array_equal(fused(tiles, whole, dtype=dtype)[0], np.where(held, truth[0], 0))


def test_extremes_neither_overflow_nor_underflow():
    tiles = [tile_of((0, 0, x), flat((2, 9, 40), v)) for x, v in ((0, 65535), (1, 0), (2, 65535), (3, 0))]
    out = fused(tiles, Box.of_shape((2, 9, 43)))
    assert out[0, 0, 0, 0] == 65535
    assert out[0, 0, 0, -1] == 0
    assert (np.diff(out[0, 0, 0, :4].astype(int)) <= 0).all()


def test_the_blend_is_the_documented_formula():
    rng = np.random.default_rng(1)
    corners = [(0, 0, 0), (2, 1, 14), (1, 12, 2), (3, 13, 15)]
    arrays = [rng.integers(0, 65535, (1, 37, 17, 20)).astype(np.uint16) for _ in corners]
    tiles = [tile_of(c, a) for c, a in zip(corners, arrays, strict=True)]
    shape = (40, 30, 35)
    wanted = in_float64(tiles, arrays, shape)
    difference = abs(fused(tiles, Box.of_shape(shape))[0] - wanted)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-2  # where the double lies next to a half


RNG = np.random.default_rng(2)
MANY = [
    tile_of((int(z), 13 * i + int(dy), 11 * j + int(dx)), RNG.integers(0, 65535, (2, 9, 17, 16)).astype(np.uint16))
    for i in range(3)
    for j in range(4)
    for z, dy, dx in [RNG.integers(0, 4, 3)]
]
WHOLE = Box.of_shape((12, 47, 52))
WHOLE_FUSED = fused(MANY, WHOLE, (1, 0))
boxes = st.builds(
    lambda *pairs: Box.from_pairs(sorted(p) for p in pairs),
    *(st.tuples(st.integers(0, n), st.integers(0, n)) for n in WHOLE.shape),
)


@settings(max_examples=30, deadline=None)
@given(
    box=boxes,
    smallest=st.sampled_from([8, 256]),
    slab=st.sampled_from([3000, 2**21]),
    at_once=st.sampled_from([1, 500, 2**16]),
    kept=st.sampled_from([0, 2**20]),
)
def test_a_voxel_is_the_same_whatever_box_and_parts_it_is_read_in(box, smallest, slab, at_once, kept):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blending, "SMALLEST_HALVED", smallest)
        patch.setattr(blending, "SLAB_BYTES", slab)
        patch.setattr(blending, "BLENDED_VOXELS", at_once)
        patch.setattr(blending, "KEPT_VOXELS", kept)
        np.testing.assert_array_equal(fused(MANY, box, (1, 0)), WHOLE_FUSED[:, *box.slices])


@settings(max_examples=30, deadline=None)
@given(box=boxes)
def test_a_part_of_a_larger_array_is_filled_and_nothing_beside_it(box):
    out = np.full((2, *WHOLE.shape), 7, np.uint16)
    fuse(MANY, box, (1, 0), out[:, *box.slices])
    np.testing.assert_array_equal(out[:, *box.slices], WHOLE_FUSED[:, *box.slices])
    out[:, *box.slices] = 7
    assert (out == 7).all()


def test_tiles_are_read_straight_into_the_result_each_voxel_once():
    out = np.empty((1, *WHOLE.shape), np.uint16)
    read = []

    def watched(tile):
        def reader(box, channels, target):
            assert np.shares_memory(target, out)
            read.append((tile.box, box))
            return tile.read(box, channels, target)

        return Tile(tile.box, reader)

    fuse([watched(tile) for tile in MANY], WHOLE, (0,), out)
    assert all(tile.contains(box) for tile, box in read)
    for tile in MANY:
        assert sum(box.size for holder, box in read if holder == tile.box) == tile.box.intersect(WHOLE).size


def test_threads_that_fuse_at_once_do_not_disturb_each_other():
    parts = [Box((z, y, 0), (z + 4, y + 16, 52)) for z in (0, 4, 8) for y in (0, 15, 31)] * 4
    with ThreadPoolExecutor(4) as pool:
        for part, out in zip(parts, pool.map(lambda part: fused(MANY, part, (1, 0)), parts), strict=True):
            np.testing.assert_array_equal(out, WHOLE_FUSED[:, *part.slices])


def test_voxels_come_out_as_ever():
    shape, tiles = (2, 9, 30, 40), []
    for i, corner in enumerate([(0, 0, 0), (1, 2, 25), (2, 19, 3), (0, 21, 27)]):
        steps = np.arange(np.prod(shape), dtype=np.int64).reshape(shape)
        tiles.append(tile_of(corner, ((steps * 7919 + i * 104729) % 65521).astype(np.uint16)))
    out = fused(tiles, Box.of_shape((11, 51, 67)), (1, 0))
    # where this has to change, count up BLENDING in zetastitcher.py: volumes converted before are others now
    assert zlib.crc32(out.astype("<u2").tobytes()) == 1824024994


@given(part=boxes, others=st.lists(boxes.filter(lambda b: b.size > 0), max_size=5))
def test_cells_tile_their_part_and_each_box_holds_them_whole_or_not_at_all(part, others):
    count = np.zeros(WHOLE.shape, int)
    flat_part = Box((0, *part.start[1:]), (1, *part.stop[1:]))
    others = [Box((0, *b.start[1:]), (1, *b.stop[1:])) for b in others]
    for cell, holders in cells_of(flat_part, others):
        count[cell.slices] += 1
        for i, other in enumerate(others):
            assert other.intersect(cell).size == (cell.size if i in holders else 0)
    wanted = np.zeros(WHOLE.shape, int)
    wanted[flat_part.slices] = 1
    np.testing.assert_array_equal(count, wanted)
