"""Boxes of voxels, and the arithmetic of their sides."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

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
