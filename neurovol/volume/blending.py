"""How tiles that overlap become one volume: what a voxel counts in its tile, and the blend of a box.

What a voxel counts depends on nothing but where it lies in its tile:

    w = s(z) · s(y) · s(x),    s = t² (3 - 2t),    t = min(1, distance to the nearer border / reach)

Distances are counted to voxel centres, so they are ½ at the outermost voxels and w is never 0. The reach
is half the tile along y and x; along z it is 16 planes (half the tile, if that is less), as tiles lie side by side
and differ along z by a few planes only. A fused voxel is Σ w v / Σ w over the tiles that hold it, rounded half up.

    share |--------.          .-------- b
    of a  |         '.      .'             an S over the whole overlap, however wide that is
    and b |           '.  .'
          |          .'  '.
          |--------'          '-------- a
              a   | overlap |   b

So a voxel that one tile holds is exactly that tile's; the share of a tile tends to 0 at its borders, so that
none shows; where tiles agree, their blend is what they agree on; and a voxel is the same whatever box is read.
Voxels that no tile holds are 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby, pairwise
from math import prod
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurovol.geometry import Box, zyx
from neurovol.volume.planefile import passing

Z_REACH = 16  # planes
MOST_AT_ONCE = 6  # tiles; a part of a box that touches more of them is halved
SMALLEST_HALVED = 256  # voxels along y or x: parts are not halved below it, however many tiles overlap there
SLAB_BYTES = 4 * 2**20  # of a part that is fused at once, so that its tiles stay in the processor's cache
BLENDED_VOXELS = 2**16  # at once, for the same reason
KEPT_VOXELS = 2**20  # of a plane, up to which its plan is kept: with its shares that is 4 MB per further tile

Floats = NDArray[np.float32]
Slices = tuple[slice, slice]  # y, x


@dataclass(frozen=True)
class Tile:
    """A tile in its place; `read` is like a source's, but its boxes count from the fused volume's corner."""

    box: Box
    read: Callable[[Box, tuple[int, ...], NDArray[Any]], NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Blend:
    """A rectangle that the same tiles hold throughout, two or more of them."""

    place: Slices  # in its part
    rectangle: Box  # of any one plane
    holders: tuple[int, ...]  # places in a sequence of tiles
    shares: tuple[Floats, ...]  # of each holder but the first, in planes where no end along z is near


@dataclass(frozen=True, eq=False)
class Plan:
    """What the planes of a part are made of; the same for all of them."""

    empty: tuple[Slices, ...]  # no tile holds it
    tiles: tuple[tuple[Box, Slices], ...]  # what each tile holds: of any one plane, and its place in the part
    blends: tuple[Blend, ...]


def fuse(tiles: Sequence[Tile], box: Box, channels: tuple[int, ...], out: NDArray[Any]) -> None:
    """Write the box, (c, z, y, x), to `out`; beside it, memory for the overlaps in one slab of it is needed."""
    for z0, z1 in pairwise(_edges([tile.box for tile in tiles], box, 0)):
        layer = _planes(box, z0, z1)  # the same tiles hold all of its planes
        _fuse_part(tiles, layer, channels, out[:, z0 - box.start[0] : z1 - box.start[0]])


def _edges(boxes: Iterable[Box], within: Box, axis: int) -> list[int]:
    """The ends of a box along an axis, and those of boxes inside it, in order."""
    first, last = within.start[axis], within.stop[axis]
    ends = (end for box in boxes for end in (box.start[axis], box.stop[axis]))
    return sorted({first, last, *(end for end in ends if first < end < last)})


def _planes(box: Box, z0: int, z1: int) -> Box:
    """The same rows and columns of other planes."""
    return Box((z0, *box.start[1:]), (z1, *box.stop[1:]))


def _meet(a: Box, b: Box) -> bool:
    """As `a.intersect(b).size > 0`, ten times faster: it is asked for every tile of every slab."""
    (z0, y0, x0), (z1, y1, x1), (w0, v0, u0), (w1, v1, u1) = a.start, a.stop, b.start, b.stop
    return max(z0, w0) < min(z1, w1) and max(y0, v0) < min(y1, v1) and max(x0, u0) < min(x1, u1)


def _fuse_part(tiles: Sequence[Tile], part: Box, channels: tuple[int, ...], out: NDArray[Any]) -> None:
    here = [tile for tile in tiles if _meet(tile.box, part)]
    if len(here) > MOST_AT_ONCE and max(part.shape[1:]) > SMALLEST_HALVED:
        for half in _halves(part):
            _fuse_part(here, half, channels, out[:, *half.within(part)])
        return
    plan_of = _kept_plan if prod(part.shape[1:]) <= KEPT_VOXELS else _plan
    plan = plan_of(tuple(tile.box for tile in here), _planes(part, 0, 1))
    first, last = part.start[0], part.stop[0]
    depth = max(1, SLAB_BYTES // max(1, out[:, :1].nbytes)) if plan.blends else last - first
    for z in range(first, last, depth):
        z_stop = min(z + depth, last)
        _fuse_slab(here, plan, (z, z_stop), channels, out[:, z - first : z_stop - first])


def _halves(part: Box) -> tuple[Box, Box]:
    """Cut across the longer of y and x."""
    axis = 1 if part.shape[1] >= part.shape[2] else 2
    middle = (part.start[axis] + part.stop[axis]) // 2
    stop, start = list(part.stop), list(part.start)
    stop[axis] = start[axis] = middle
    return Box(part.start, zyx(stop)), Box(zyx(start), part.stop)


def _plan(boxes: tuple[Box, ...], part: Box) -> Plan:
    """Of a part that is one plane deep, whichever, and the tiles' boxes that meet it."""
    flat = [_planes(box, 0, 1) for box in boxes]
    inside = [box.intersect(part) for box in flat]
    cells = cells_of(part, flat)
    return Plan(
        tuple(_place(cell, part) for cell, holders in cells if not holders),
        tuple((box, _place(box, part)) for box in inside),
        tuple(
            Blend(_place(cell, part), cell, holders, tuple(_shares([_counts(boxes[i], cell) for i in holders])))
            for cell, holders in cells
            if len(holders) > 1
        ),
    )


@lru_cache(maxsize=8)  # slab after slab of a block has the same
def _kept_plan(boxes: tuple[Box, ...], part: Box) -> Plan:
    return _plan(boxes, part)


def _place(rectangle: Box, part: Box) -> Slices:
    _, rows, cols = rectangle.within(part)
    return rows, cols


def cells_of(part: Box, boxes: Sequence[Box]) -> list[tuple[Box, tuple[int, ...]]]:
    """`part` cut into boxes that the same tiles hold throughout, each with the places of these in `boxes`.

    Of the boxes that meet the part, all hold it along z.

    >>> a, b = Box((0, 0, 0), (1, 4, 6)), Box((0, 0, 4), (1, 4, 9))
    >>> [(cell.pairs[2], holders) for cell, holders in cells_of(Box((0, 1, 0), (1, 3, 12)), [a, b])]
    [((0, 4), (0,)), ((4, 6), (0, 1)), ((6, 9), (1,)), ((9, 12), ())]
    """
    inside = [b.intersect(part) for b in boxes]
    (z0, _, _), (z1, _, _) = part.start, part.stop
    columns = list(pairwise(_edges(inside, part, 2)))
    cells = []
    for y0, y1 in pairwise(_edges(inside, part, 1)):
        row = [(i, b.pairs[2]) for i, b in enumerate(inside) if b.size and b.start[1] <= y0 < b.stop[1]]
        held = [(tuple(i for i, (a, b) in row if a <= x0 < b), x0, x1) for x0, x1 in columns]
        for holders, run in groupby(held, key=itemgetter(0)):
            joined = list(run)
            cells.append((Box((z0, y0, joined[0][1]), (z1, y1, joined[-1][2])), holders))
    return cells


def _fuse_slab(
    tiles: Sequence[Tile], plan: Plan, planes: tuple[int, int], channels: tuple[int, ...], out: NDArray[Any]
) -> None:
    """Each tile is read once, to its place in `out`; what a later one will be read over is set aside first.

    a is read      |aaaaaaaaaaaa|
    set aside               |aaa|
    b is read      |aaaaaaaa|bbbbbbbbbbbb|
    blended        |aaaaaaaa|***|bbbbbbbb|
    """
    for rows, cols in plan.empty:
        out[:, :, rows, cols] = 0
    overlaps = list(zip(plan.blends, _room(plan.blends, out), strict=True))
    for i, (tile, (rectangle, place)) in enumerate(zip(tiles, plan.tiles, strict=True)):
        tile.read(_planes(rectangle, *planes), channels, out[:, :, *place])
        for blend, aside in overlaps:
            if i not in blend.holders:
                continue
            here, rank = out[:, :, *blend.place], blend.holders.index(i)
            if rank < len(aside):
                aside[rank] = here
            else:
                _blend(blend, [tiles[j].box for j in blend.holders], planes[0], [*aside, here], here)


def _room(blends: Sequence[Blend], out: NDArray[Any]) -> list[NDArray[Any]]:
    """For each of the blends an array (holder, c, z, y, x) of any content, for all holders but the last."""
    shapes = [(len(b.holders) - 1, *out.shape[:2], *b.rectangle.shape[1:]) for b in blends]
    ends = [0, *np.cumsum([prod(shape) for shape in shapes], dtype=np.int64)]
    memory = passing("blending: aside", (int(ends[-1]),), out.dtype)
    return [memory[a:b].reshape(shape) for (a, b), shape in zip(pairwise(ends), shapes, strict=True)]


def _blend(blend: Blend, boxes: Sequence[Box], z: int, values: Sequence[NDArray[Any]], out: NDArray[Any]) -> None:
    """Write the blend of (c, z, y, x) arrays from plane z on to `out`, which may be one of them."""
    weights_z = [_along(box, 0, z, z + out.shape[1]) for box in boxes]
    ratios = [weight / weights_z[0] for weight in weights_z]  # to the first tile's; 1 where no end along z is near
    at_once = max(1, BLENDED_VOXELS // max(1, blend.rectangle.size))
    start = 0
    for ratio, run in groupby(zip(*ratios, strict=True)):
        stop = start + len(list(run))
        shares: Sequence[Floats] = blend.shares
        if any(r != 1 for r in ratio):
            shares = _shares([_counts(box, blend.rectangle) * r for box, r in zip(boxes, ratio, strict=True)])
        for a in range(start, stop, at_once):
            planes = slice(a, min(a + at_once, stop))
            for c in range(len(out)):
                _blend_planes([value[c, planes] for value in values], shares, out[c, planes])
        start = stop


def _shares(weights: Sequence[Floats]) -> list[Floats]:
    """(y, x) of each tile but the first: its part of the blend where tiles count that much."""
    total = weights[0].copy()
    for weight in weights[1:]:
        total += weight
    return [weight / total for weight in weights[1:]]


def _blend_planes(values: Sequence[NDArray[Any]], shares: Sequence[Floats], out: NDArray[Any]) -> None:
    """The first tile's value, and of each other its share of the difference: exact where they agree."""
    first, difference, blended = passing("blending: floats", (3, *out.shape), np.dtype(np.float32))
    first[...] = values[0]
    if len(shares) == 1:
        blended = first
    else:
        blended[...] = first
    for value, share in zip(values[1:], shares, strict=True):
        difference[...] = value
        difference -= first
        difference *= share
        blended += difference
    blended += np.float32(0.5)
    out[...] = blended  # cut to whole numbers, so rounded half up


def _counts(tile: Box, rectangle: Box) -> Floats:
    """(y, x): s(y) · s(x) of the voxels of a rectangle in a tile that holds it."""
    (_, y0, x0), (_, y1, x1) = rectangle.start, rectangle.stop
    return np.multiply.outer(_along(tile, 1, y0, y1), _along(tile, 2, x0, x1))


def _along(tile: Box, axis: int, start: int, stop: int) -> Floats:
    """s of the voxels from start to stop along one axis of a tile that holds them."""
    length = tile.stop[axis] - tile.start[axis]
    reach = min(Z_REACH, length / 2) if axis == 0 else length / 2
    ramp: Floats = _ramp(length, reach)[start - tile.start[axis] : stop - tile.start[axis]]
    return ramp


@lru_cache(maxsize=64)
def _ramp(length: int, reach: float) -> Floats:
    """s of each voxel along an axis of a tile."""
    places = np.arange(length) + 0.5
    t = np.minimum(1.0, np.minimum(places, length - places) / reach)
    return np.asarray(t * t * (3 - 2 * t), np.float32)
