"""Boxes, windows and blocks: integers only, and the only place that computes starts and stops.

Axes are z, y, x; boxes are half-open, in voxels of one level.

    |==halo==|######## write ########|==halo==|
    |<----------------- read ---------------->|
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import overload

Zyx = tuple[int, int, int]
AXES = "zyx"


def round_up(value: int, step: int) -> int:
    """The smallest multiple of `step` that is at least `value`.

    >>> round_up(13, 4)
    16
    """
    return -(-value // step) * step


def ceil_div(shape: Zyx, factors: Zyx) -> Zyx:
    """How many steps of `factors` cover `shape`, per axis.

    >>> ceil_div((30, 510, 667), (1, 2, 2))
    (30, 255, 334)
    """
    z, y, x = (-(-n // f) for n, f in zip(shape, factors, strict=True))
    return z, y, x


def zyx(values: Iterable[int]) -> Zyx:
    """Exactly three integers as a tuple."""
    z, y, x = values
    return int(z), int(y), int(x)


@dataclass(frozen=True, order=True, slots=True)
class Box:
    """A half-open box of voxels, `start` included, `stop` not.

    >>> Box((0, 2, 4), (1, 5, 8)).shape
    (1, 3, 4)
    """

    start: Zyx
    stop: Zyx

    def __post_init__(self) -> None:
        if any(b < a for a, b in zip(self.start, self.stop, strict=True)):
            raise ValueError(f"box start {self.start} lies beyond its stop {self.stop}")

    def __reduce__(self) -> tuple[type[Box], tuple[Zyx, Zyx]]:  # a dataclass with slots takes thrice as long to pickle
        return Box, (self.start, self.stop)

    @classmethod
    def of_shape(cls, shape: Zyx) -> Box:
        """The box of a whole volume."""
        return cls((0, 0, 0), zyx(shape))

    @classmethod
    def from_pairs(cls, pairs: Iterable[Iterable[int]]) -> Box:
        """From ((z0, z1), (y0, y1), (x0, x1)), as project files write it."""
        starts, stops = zip(*pairs, strict=True)
        return cls(zyx(starts), zyx(stops))

    @classmethod
    def centred(cls, centre: Zyx, shape: Zyx) -> Box:
        """The box of that shape around a voxel."""
        start = zyx(c - n // 2 for c, n in zip(centre, shape, strict=True))
        return cls(start, zyx(a + n for a, n in zip(start, shape, strict=True)))

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        return tuple(zip(self.start, self.stop, strict=True))

    @property
    def shape(self) -> Zyx:
        return zyx(b - a for a, b in self.pairs)

    @property
    def size(self) -> int:
        """Number of voxels."""
        return prod(self.shape)

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        z, y, x = (slice(a, b) for a, b in self.pairs)
        return z, y, x

    def within(self, outer: Box) -> tuple[slice, slice, slice]:
        """The slices of this box in an array that holds `outer`."""
        return self.shifted(zyx(-a for a in outer.start)).slices

    def intersect(self, other: Box) -> Box:
        """The shared voxels; a box of size 0 where there are none."""
        start = zyx(max(a, b) for a, b in zip(self.start, other.start, strict=True))
        stop = (min(a, b) for a, b in zip(self.stop, other.stop, strict=True))
        return Box(start, zyx(max(a, b) for a, b in zip(start, stop, strict=True)))

    def contains(self, other: Box) -> bool:
        return self.intersect(other) == other

    def touches(self, other: Box, gap: int = 0) -> bool:
        """True if the boxes share a voxel or a face, or lie closer than `gap` voxels."""
        return all(
            a0 <= b1 + gap and b0 <= a1 + gap for (a0, a1), (b0, b1) in zip(self.pairs, other.pairs, strict=True)
        )

    def grown(self, margin: Zyx) -> Box:
        """Grown by `margin` on both sides of each axis (may leave the volume)."""
        start = zyx(a - m for a, m in zip(self.start, margin, strict=True))
        return Box(start, zyx(b + m for b, m in zip(self.stop, margin, strict=True)))

    def shifted(self, offset: Zyx) -> Box:
        start = zyx(a + o for a, o in zip(self.start, offset, strict=True))
        return Box(start, zyx(b + o for b, o in zip(self.stop, offset, strict=True)))

    def aligned(self, step: Zyx) -> Box:
        """The smallest box on multiples of `step` that holds this one."""
        start = zyx(a // s * s for a, s in zip(self.start, step, strict=True))
        return Box(start, zyx(round_up(b, s) for b, s in zip(self.stop, step, strict=True)))

    def downsampled(self, factors: Zyx) -> Box:
        """The voxels of a coarser level that any voxel of this box falls into."""
        return Box(
            zyx(a // f for a, f in zip(self.start, factors, strict=True)),
            ceil_div(self.stop, factors),
        )

    def upsampled(self, factors: Zyx) -> Box:
        """The voxels of a finer level that make up this box."""
        start = zyx(a * f for a, f in zip(self.start, factors, strict=True))
        return Box(start, zyx(b * f for b, f in zip(self.stop, factors, strict=True)))

    def moved_into(self, outer: Box) -> Box:
        """Shifted to lie inside `outer`; centred on it along axes where it does not fit.

        >>> Box((0, 90, -5), (32, 154, 59)).moved_into(Box((0, 0, 0), (30, 128, 128)))
        Box(start=(-1, 64, 0), stop=(31, 128, 64))
        """
        starts = []
        for (a, b), (low, high) in zip(self.pairs, outer.pairs, strict=True):
            room = (high - low) - (b - a)
            starts.append(min(max(a, low), low + room) if room >= 0 else low + room // 2)
        return self.shifted(zyx(s - a for s, a in zip(starts, self.start, strict=True)))


def reflect(index: int, length: int) -> int:
    """Where a voxel index lands in a volume mirrored at its first and last voxel, repeatedly.

    >>> [reflect(i, 3) for i in range(-3, 7)]
    [1, 2, 1, 0, 1, 2, 1, 0, 1, 2]
    """
    if length == 1:
        return 0
    index %= 2 * (length - 1)
    return min(index, 2 * (length - 1) - index)


@dataclass(frozen=True, slots=True)
class ReflectedRead:
    """How to read a box that leaves its volume: read `inner`, then take these indices of it."""

    inner: Box
    take: tuple[tuple[int, ...] | None, ...]  # per axis; None where nothing is reflected


def reflected(box: Box, volume: Zyx) -> ReflectedRead:
    """The part of the volume that a box needs if the volume is continued by reflection.

    >>> reflected(Box((-2, 0, 0), (2, 1, 1)), (8, 1, 1)).take[0]
    (2, 1, 0, 1)
    """
    starts: list[int] = []
    stops: list[int] = []
    take: list[tuple[int, ...] | None] = []
    for (a, b), n in zip(box.pairs, volume, strict=True):
        if a >= 0 and b <= n:
            starts.append(a)
            stops.append(b)
            take.append(None)
            continue
        indices = [reflect(i, n) for i in range(a, b)]
        low = min(indices, default=0)
        starts.append(low)
        stops.append(max(indices, default=low - 1) + 1)
        take.append(tuple(i - low for i in indices))
    return ReflectedRead(Box(zyx(starts), zyx(stops)), tuple(take))


@dataclass(frozen=True, slots=True)
class Window:
    """What a kernel computes at once: it reads `read`, and `write` of the result is kept."""

    write: Box
    read: Box  # may leave the volume, which is then continued by reflection


def check_halo(halo: Zyx, reach: Zyx, stride: Zyx) -> None:
    """Refuse a halo at which windows would show (invariant 2), and name the right one."""
    right = zyx(round_up(r, s) for r, s in zip(reach, stride, strict=True))
    if any(h % s for h, s in zip(halo, stride, strict=True)):
        raise ValueError(
            f"halo {halo} is not a multiple of the network's stride {stride}; "
            f"use {right}, or windows will disagree at their seams"
        )
    if any(h < r for h, r in zip(halo, reach, strict=True)):
        raise ValueError(
            f"halo {halo} is smaller than the network's reach {reach}; "
            f"use {right}, or windows will disagree at their seams"
        )


def windows(region: Box, window: Zyx, halo: Zyx, stride: Zyx) -> Iterator[Window]:
    """Cover `region` with windows whose reads start on the stride, counted from the volume's origin.

    The write boxes tile `region`; a read box is its write box grown outwards to the stride and by
    the halo. `window` is the largest write shape and a multiple of the stride.
    """
    if any(w % s or w < 1 for w, s in zip(window, stride, strict=True)):
        raise ValueError(f"window {window} is not a positive multiple of the stride {stride}")
    if region.size == 0:
        return
    frame = region.aligned(stride)
    for start in product(*(range(a, b, w) for (a, b), w in zip(frame.pairs, window, strict=True))):
        origin = zyx(start)
        cell = Box(origin, zyx(a + w for a, w in zip(origin, window, strict=True)))
        write = cell.intersect(region)
        yield Window(write, write.aligned(stride).grown(halo))


def window_count(region: Box, window: Zyx, stride: Zyx) -> int:
    """How many windows cover `region`, see `windows`.

    >>> window_count(Box((0, 3, 0), (8, 9, 5)), (8, 4, 4), (1, 2, 2))
    4
    """
    return prod(ceil_div(region.aligned(stride).shape, window)) if region.size else 0


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
    places: Sequence[int] | None = None  # ascending; None: all

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
