"""A phantom's vessels: capillaries and a few trunks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.special import ndtri

from neurovol.volume.phantom_lattice import hashes, uniforms
from neurovol.volume.phantom_shapes import WALL_UM, Column, Points, Region, Tubes, between, joined
from neurovol.volume.phantom_traits import Traits


def vessels(seed: int, region: Region, traits: Traits) -> Tubes:
    """Capillaries and a few trunks: two lattices of nodes, some neighbours joined by bent tubes.

    Where three or more tubes meet in a node the vessel branches.
    """
    fine = _network(
        seed, "capillary", region, traits.vessel_spacing_um, traits.vessel_share, traits.vessel_radius_um, pieces=5
    )
    share = 0.5 * traits.vessel_share
    trunk = _network(seed, "trunk", region, traits.trunk_spacing_um, share, traits.trunk_radius_um, pieces=16)
    return joined([fine, trunk])


def _network(
    seed: int, trait: str, region: Region, spacing: float, share: float, radii: tuple[float, float], pieces: int
) -> Tubes:
    cells = region.cells(1.5 * spacing + radii[1], spacing)
    shape = tuple(len(c) for c in cells)
    u = uniforms(hashes(seed, trait, cells), 10).reshape(*shape, 10)
    corners = np.stack(np.meshgrid(*cells, indexing="ij"), axis=-1)
    nodes = (corners + u[..., :3]) * spacing
    radius = between(radii, u[..., 3] ** 2)
    # which way vessels pass through a node; bounded, so that no vessel bulges beyond the cells looked at
    ways = np.clip(ndtri(u[..., 4:7]), -2.5, 2.5) * (0.16 * spacing)
    found = []
    for axis in range(3):
        here, there = (
            tuple(side if a == axis else slice(None) for a in range(3)) for side in (slice(0, -1), slice(1, None))
        )
        linked = u[here][..., 7 + axis] < share
        ends = [(nodes[side][linked], ways[side][linked], radius[side][linked]) for side in (here, there)]
        found += _bent(*ends[0], *ends[1], pieces)
    return joined(found).within(region, WALL_UM + 0.5)


def _bent(a: Points, way_a: Points, ra: Column, b: Points, way_b: Points, rb: Column, pieces: int) -> list[Tubes]:
    """A cubic curve from a to b in straight pieces; it leaves a and reaches b the way that others do."""
    first, second = a + (b - a) / 3 + way_a, b - (b - a) / 3 - way_b
    t = [k / pieces for k in range(pieces + 1)]
    on = [a * (1 - s) ** 3 + first * 3 * s * (1 - s) ** 2 + second * 3 * s * s * (1 - s) + b * s**3 for s in t]
    radii = [ra * (1 - s) + rb * s for s in t]
    dark = np.zeros_like(ra)
    return [Tubes(on[k], on[k + 1], radii[k], radii[k + 1], dark, dark) for k in range(pieces)]


def beside_vessels(points: Points, width: Column, tubes: Tubes) -> NDArray[np.bool_]:
    """Which bodies no vessel runs through (they may lie at its wall): (n,)."""
    steps = np.linspace(0, 1, 4)[:3, None, None]
    on = (tubes.start + steps * (tubes.stop - tubes.start)).reshape(-1, 3)
    radius = np.tile(tubes.radius, 3)
    if not len(on):
        return np.ones(len(points), np.bool_)
    nearest = cKDTree(on).query(points)[1]
    apart = points - on[nearest]
    free = 0.75 * width + radius[nearest]
    return np.asarray((apart * apart).sum(axis=1) > free * free)
