"""Blocks: a volume cut into what is scheduled, tried again and recorded, by whole shards."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import overload

from neurovol.geometry.box import AXES, Box, Zyx, ceil_div, round_up, zyx


@dataclass(frozen=True, slots=True)
class Block:
    """The unit of scheduling, retry and record: whole shards of what it writes."""

    index: int
    write: Box

    def __reduce__(self) -> tuple[type[Block], tuple[int, Box]]:
        return Block, (self.index, self.write)


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a writer hands back: which voxels are durably on disk, and the crc32c of their C-order bytes."""

    box: Box
    crc32c: int
    skipped: str | None = None  # why the voxels were not computed, and are zeros

    def __reduce__(self) -> tuple[type[Receipt], tuple[Box, int, str | None]]:
        return Receipt, (self.box, self.crc32c, self.skipped)


@dataclass(frozen=True, slots=True)
class BlockGrid:
    """A volume cut into blocks of whole shards; block `i` in raster order (z, y, x).

    >>> len(BlockGrid((30, 510, 667), block=(32, 256, 256), shard=(32, 256, 256)))
    6
    """

    volume: Zyx
    block: Zyx
    shard: Zyx

    def __post_init__(self) -> None:
        for axis, n, block, shard in zip(AXES, self.volume, self.block, self.shard, strict=True):
            if min(n, block, shard) < 1:
                raise ValueError(f"axis {axis}: volume {n}, block {block} and shard {shard} must be positive")
            if block % shard and block < n:
                raise ValueError(
                    f"axis {axis}: block {block} is not a whole number of shards of {shard}, so two blocks "
                    f"would write one shard; use {round_up(block, shard)}"
                )

    @property
    def counts(self) -> Zyx:
        return ceil_div(self.volume, self.block)

    def __len__(self) -> int:
        return prod(self.counts)

    def __getitem__(self, index: int) -> Block:
        if not 0 <= index < len(self):
            raise IndexError(f"block {index} of {len(self)}")
        _, ny, nx = self.counts
        (z, y, x), (depth, height, width) = self.block, self.volume  # spelled out: there may be a million
        z0, y0, x0 = index // (ny * nx) * z, index // nx % ny * y, index % nx * x
        stop = min(z0 + z, depth), min(y0 + y, height), min(x0 + x, width)
        return Block(index, Box((z0, y0, x0), stop))

    def __iter__(self) -> Iterator[Block]:
        return (self[i] for i in range(len(self)))

    def morton_places(self) -> array[int]:
        """All indices in Morton order: the blocks of a cube of 2, 4, 8 … along each axis follow each other.

        |0 1|4 5|    so those of faces that they share are read at about the same time. Where one axis has more
        |2 3|6 7|    blocks than others, it alone is halved until it has not.

        >>> list(BlockGrid((1, 2, 3), (1, 1, 1), (1, 1, 1)).morton_places())
        [0, 1, 3, 4, 2, 5]
        """
        depth, height, width = self.counts
        found = array("Q")
        whole = zyx(1 << (n - 1).bit_length() for n in self.counts)
        left = [((0, 0, 0), whole)]  # cubes of blocks, the next one last
        while left:
            (z, y, x), extent = left.pop()
            longest = max(extent)
            if longest == 1:
                found.append((z * height + y) * width + x)
                continue
            a, b, c = part = zyx(n // 2 if n == longest else n for n in extent)
            zs, ys, xs = range(z, z + extent[0], a), range(y, y + extent[1], b), range(x, x + extent[2], c)
            corners = [(i, j, k) for i in zs if i < depth for j in ys if j < height for k in xs if k < width]
            left.extend((corner, part) for corner in reversed(corners))
        return found

    def meeting(self, boxes: Iterable[Box]) -> list[Block]:
        """The blocks that share a voxel with any of the boxes, in index order."""
        return [self[i] for i in self.places_meeting(boxes)]

    def places_meeting(self, boxes: Iterable[Box]) -> list[int]:
        """The indices of those blocks, ascending."""
        found: set[int] = set()
        _, ny, nx = self.counts
        for box in boxes:
            part = box.intersect(Box.of_shape(self.volume))
            if part.size:
                places = part.downsampled(self.block)
                found.update((z * ny + y) * nx + x for z, y, x in product(*(range(a, b) for a, b in places.pairs)))
        return sorted(found)


def side_by_side(blocks: Iterable[Block], most: Callable[[], int]) -> Iterator[tuple[Block, ...]]:
    """Blocks in their order, as many at a time as `most` then says where each continues the one before along x.

    >>> grid = BlockGrid((4, 8, 20), (4, 4, 8), (4, 4, 8))
    >>> [[block.index for block in some] for some in side_by_side(grid, lambda: 2)]
    [[0, 1], [2], [3, 4], [5]]
    """
    held: list[Block] = []
    for block in blocks:
        if held and (len(held) >= most() or not _continues(held[-1].write, block.write)):
            yield tuple(held)
            held = []
        held.append(block)
    if held:
        yield tuple(held)


@dataclass(frozen=True, slots=True)
class Numbered(Sequence[Block]):
    """The blocks of a grid, all or those of some places, numbered on from an offset; each made when it is asked for."""

    grid: BlockGrid
    offset: int = 0
    places: Sequence[int] | None = None  # in their order; None: all, ascending

    def near_each_other(self) -> Numbered:
        """The same blocks with the same numbers in Morton order."""
        order = self.grid.morton_places()
        if self.places is None:
            return replace(self, places=order)
        wanted = set(self.places)
        return replace(self, places=array("Q", (place for place in order if place in wanted)))

    def __len__(self) -> int:
        return len(self.grid) if self.places is None else len(self.places)

    def number(self, index: int) -> int:
        """Of the block there, which this does not make."""
        return self.offset + (index if self.places is None else self.places[index])

    @overload
    def __getitem__(self, index: int) -> Block: ...
    @overload
    def __getitem__(self, index: slice) -> list[Block]: ...
    def __getitem__(self, index: int | slice) -> Block | list[Block]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        number = self.number(index)
        return Block(number, self.grid[number - self.offset].write)


def _continues(box: Box, other: Box) -> bool:
    return other.start == (*box.start[:2], box.stop[2]) and other.stop[:2] == box.stop[:2]


def shard_keys(box: Box, shard: Zyx) -> list[Zyx]:
    """The grid positions of the shards that a box touches."""
    return [zyx(p) for p in product(*(range(a, b) for a, b in box.downsampled(shard).pairs))]
