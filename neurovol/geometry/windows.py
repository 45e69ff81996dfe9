"""Windows: what a kernel computes at once, what it reads for that, and how that is continued beyond the volume."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import prod

from neurovol.geometry.box import Box, Zyx, ceil_div, round_up, zyx


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
