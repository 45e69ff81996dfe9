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

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby, pairwise
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurovol.geometry import Box, zyx

Z_REACH = 16  # planes
MOST_AT_ONCE = 6  # tiles; a part of a box that touches more of them is halved
SMALLEST_HALVED = 256  # voxels along y or x: parts are not halved below it, however many tiles overlap there
SLAB_BYTES = 2 * 2**20  # of a part that is fused at once, so that its tiles stay in the processor's cache

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Tile:
    """A tile in its place; `read` is like a source's, but its boxes count from the fused volume's corner."""

    box: Box
    read: Callable[[Box, tuple[int, ...], NDArray[Any] | None], NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Cell:
    """A box that the same tiles hold throughout."""

    box: Box
    holders: tuple[int, ...]  # places in a sequence of tiles
    weights_yx: tuple[Floats, ...]  # s(y) · s(x) in each holder; none where nothing is to be blended


def fuse(tiles: Sequence[Tile], box: Box, channels: tuple[int, ...], out: NDArray[Any]) -> None:
    """Write the box, (c, z, y, x), to `out`; beside it, memory for one part or slab of it is needed."""
    for layer in _layers([tile.box for tile in tiles], box):
        _fuse_part(tiles, layer, channels, out[:, *layer.within(box)])


def _layers(boxes: Sequence[Box], box: Box) -> Iterator[Box]:
    """`box` cut at the planes where a tile begins or ends, so that the same tiles hold all planes of a layer."""
    inside = [b.intersect(box) for b in boxes]
    (_, y0, x0), (_, y1, x1) = box.start, box.stop
    for z0, z1 in pairwise(_edges(inside, box, 0)):
        yield Box((z0, y0, x0), (z1, y1, x1))


def _edges(boxes: Sequence[Box], within: Box, axis: int) -> list[int]:
    """The ends of a box along an axis, and those of boxes inside it, in order."""
    pairs = [within.pairs[axis], *(b.pairs[axis] for b in boxes if b.size)]
    return sorted({edge for pair in pairs for edge in pair})


def _fuse_part(tiles: Sequence[Tile], part: Box, channels: tuple[int, ...], out: NDArray[Any]) -> None:
    here = [tile for tile in tiles if tile.box.intersect(part).size]
    if len(here) > MOST_AT_ONCE and max(part.shape[1:]) > SMALLEST_HALVED:
        for half in _halves(part):
            _fuse_part(here, half, channels, out[:, *half.within(part)])
        return
    cells = [_cell(box, holders, here) for box, holders in cells_of(part, [tile.box for tile in here])]
    plane_bytes = max(1, out[:, :1].nbytes)
    for slab in _slabs(part, max(1, SLAB_BYTES // plane_bytes)) if len(here) > 1 else [part]:
        _fuse_slab(here, cells, slab, channels, out[:, *slab.within(part)])


def _halves(part: Box) -> tuple[Box, Box]:
    """Cut across the longer of y and x."""
    axis = 1 if part.shape[1] >= part.shape[2] else 2
    middle = (part.start[axis] + part.stop[axis]) // 2
    stop, start = list(part.stop), list(part.start)
    stop[axis] = start[axis] = middle
    return Box(part.start, zyx(stop)), Box(zyx(start), part.stop)


def _slabs(part: Box, depth: int) -> Iterator[Box]:
    """Cut every `depth` planes."""
    for z in range(part.start[0], part.stop[0], depth):
        yield Box((z, *part.start[1:]), (z + depth, *part.stop[1:])).intersect(part)


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


def _cell(box: Box, holders: tuple[int, ...], tiles: Sequence[Tile]) -> Cell:
    """With what its voxels count in a plane, so that it is worked out once for all planes of a part."""
    boxes = [tiles[i].box for i in holders] if len(holders) > 1 else []
    return Cell(box, holders, tuple(np.multiply.outer(_along(b, box, 1), _along(b, box, 2)) for b in boxes))


def _fuse_slab(
    tiles: Sequence[Tile], cells: Sequence[Cell], slab: Box, channels: tuple[int, ...], out: NDArray[Any]
) -> None:
    """Each tile's part is read once: the largest straight to its place in `out`, the others beside it."""
    parts = [tile.box.intersect(slab) for tile in tiles]
    largest = max(range(len(tiles)), key=lambda i: parts[i].size, default=-1)
    arrays = [
        tile.read(part, channels, out[:, *part.within(slab)] if i == largest else None)
        for i, (tile, part) in enumerate(zip(tiles, parts, strict=True))
    ]
    for cell in cells:
        box = cell.box.intersect(slab)
        target = out[:, *box.within(slab)]
        values = [arrays[i][:, *box.within(parts[i])] for i in cell.holders]
        if not cell.holders:
            target[...] = 0
        elif len(cell.holders) > 1:
            weights_z = [_along(tiles[i].box, box, 0) for i in cell.holders]
            _blend(weights_z, cell.weights_yx, values, target)
        elif cell.holders[0] != largest:
            target[...] = values[0]


def _blend(
    weights_z: Sequence[Floats], weights_yx: Sequence[Floats], values: Sequence[NDArray[Any]], out: NDArray[Any]
) -> None:
    """Write the blend of (c, z, y, x) arrays to `out`, which may be one of them; planes that count alike at once."""
    ratios = [weight / weights_z[0] for weight in weights_z]  # to the first tile's; 1 where no end along z is near
    z = 0
    for ratio, run in groupby(zip(*ratios, strict=True)):
        n = len(list(run))
        shares = _shares(weights_yx, ratio)
        for channel in range(len(out)):
            here = (channel, slice(z, z + n))
            _blend_planes([value[here] for value in values], shares, out[here])
        z += n


def _shares(weights_yx: Sequence[Floats], ratio: Sequence[np.float32]) -> list[Floats]:
    """(y, x) of each tile but the first: its part of the blend, in planes that count `ratio` in each tile."""
    weights = [weight * r for weight, r in zip(weights_yx, ratio, strict=True)]
    total = weights[0].copy()
    for weight in weights[1:]:
        total += weight
    return [weight / total for weight in weights[1:]]


def _blend_planes(values: Sequence[NDArray[Any]], shares: Sequence[Floats], out: NDArray[Any]) -> None:
    """The first tile's value, and of each other its share of the difference: exact where they agree."""
    first = values[0].astype(np.float32)
    blended = first.copy() if len(shares) > 1 else first
    for value, share in zip(values[1:], shares, strict=True):
        difference = value.astype(np.float32)
        difference -= first
        difference *= share
        blended += difference
    blended += np.float32(0.5)
    out[...] = blended  # cut to whole numbers, so rounded half up


def _along(tile: Box, cell: Box, axis: int) -> Floats:
    """What the voxels of a cell count along one axis of a tile that holds it."""
    length = tile.shape[axis]
    reach = min(Z_REACH, length / 2) if axis == 0 else length / 2
    start = tile.start[axis]
    ramp: Floats = _ramp(length, reach)[cell.start[axis] - start : cell.stop[axis] - start]
    return ramp


@lru_cache(maxsize=64)
def _ramp(length: int, reach: float) -> Floats:
    """s of each voxel along an axis of a tile."""
    places = np.arange(length) + 0.5
    t = np.minimum(1.0, np.minimum(places, length - places) / reach)
    return np.asarray(t * t * (3 - 2 * t), np.float32)
