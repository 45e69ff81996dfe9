"""The shapes that phantom tissue is made of, in µm, as tables: one row per object."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from neurovol.volume.phantom_surface import Surface

Points = NDArray[np.float64]  # (n, 3), z, y, x in µm
Column = NDArray[np.float64]  # (n,)

WALL_UM = 4.0  # distances from vessels are wanted up to here


@dataclass(frozen=True)
class Region:
    """A box in µm, and the surface of the sample it lies in."""

    low: tuple[float, float, float]
    high: tuple[float, float, float]
    surface: Surface

    def grown(self, margin: float) -> Region:
        z, y, x = self.low
        low = (z - margin, y - margin, x - margin)
        z, y, x = self.high
        return replace(self, low=low, high=(z + margin, y + margin, x + margin))

    def cells(self, reach: float, size: float) -> list[NDArray[np.int64]]:
        """Which cells of a lattice lie within reach, per axis."""
        sides = zip(self.low, self.high, strict=True)
        return [np.arange(int((a - reach) // size), int((b + reach) // size) + 1) for a, b in sides]

    def near(self, points: Points, reach: Column | float) -> NDArray[np.bool_]:
        r = np.asarray(reach).reshape(-1, 1)
        return np.asarray(((points + r > self.low) & (points - r < self.high)).all(axis=1))


class Body(NamedTuple):
    """One of Bodies, in plain numbers."""

    centre: list[float]
    axis: list[float]
    flat: list[float]
    half_length: float
    half_width: float
    taper: float
    flattening: float
    brightness: float
    nucleus: float


@dataclass(frozen=True)
class Bodies:
    """Rounded or pear-shaped bodies: half axes, `axis` towards the pear's tip, `flat` the thin direction."""

    centre: Points
    axis: Points
    flat: Points
    half_length: Column
    half_width: Column
    taper: Column
    flattening: Column
    brightness: Column  # of the cytoplasm, 1 = neuropil
    nucleus: Column  # how much darker the nucleus is, 0 to 1

    @property
    def reach(self) -> Column:
        """No part of a body, its uneven outline included, is farther from its centre."""
        return 1.65 * self.half_length + 1.5

    def rows(self) -> Iterator[tuple[Body, float]]:
        """Each body and its reach."""
        bodies = (Body(*row) for row in _rows(self))
        return zip(bodies, self.reach.tolist(), strict=True)

    def only(self, keep: NDArray[np.bool_]) -> Bodies:
        return Bodies(**{name: column[keep] for name, column in vars(self).items()})


@dataclass(frozen=True)
class Tubes:
    """Tapering tubes between two points."""

    start: Points
    stop: Points
    radius: Column
    end_radius: Column
    brightness: Column
    end_brightness: Column

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """Each tube as start, stop, radius, end radius, brightness, end brightness."""
        return _rows(self)

    def only(self, keep: NDArray[np.bool_]) -> Tubes:
        return Tubes(**{name: column[keep] for name, column in vars(self).items()})

    def within(self, region: Region, margin: float) -> Tubes:
        r = np.maximum(self.radius, self.end_radius)[:, None] + margin
        low, high = np.minimum(self.start, self.stop) - r, np.maximum(self.start, self.stop) + r
        return self.only(np.asarray(((high > region.low) & (low < region.high)).all(axis=1)))


@dataclass(frozen=True)
class Grains:
    """Small bright balls."""

    centre: Points
    radius: Column
    brightness: Column

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """Each grain as centre, radius, brightness."""
        return _rows(self)


def _rows(table: Bodies | Tubes | Grains) -> Iterator[tuple[Any, ...]]:
    return zip(*(column.tolist() for column in vars(table).values()), strict=True)


def joined(parts: list[Tubes]) -> Tubes:
    return Tubes(*(np.concatenate([getattr(p, name) for p in parts]) for name in vars(parts[0])))


def between(bounds: tuple[float, float], u: Column) -> Column:
    return bounds[0] + (bounds[1] - bounds[0]) * u
