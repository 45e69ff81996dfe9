"""Where a phantom's cells and grains lie: tables of shapes for any region, in µm.

Objects are drawn from lattices of fixed cells. A table holds every object that reaches into the region,
in one order that does not depend on it, since later objects cover earlier ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.special import exp10, ndtri

from neurovol.volume.phantom_lattice import hashes, uniforms
from neurovol.volume.phantom_shapes import Bodies, Column, Grains, Points, Region, Tubes, between, joined
from neurovol.volume.phantom_traits import Traits
from neurovol.volume.phantom_vessels import beside_vessels, vessels

CELL_UM = 32.0
KEPT = 1.1  # one in eleven candidates is dropped, at the default density
CANDIDATES = 3  # neurons per cell at most, before those too close to another are dropped


def _unit(vectors: Points) -> Points:
    return np.asarray(vectors / np.sqrt((vectors * vectors).sum(axis=1, keepdims=True)))


def _directions(u: Points) -> Points:
    """Uniform on the sphere, from three uniforms each."""
    return _unit(ndtri(u))


def _log_normal(median: float, sigma: float, u: Column) -> Column:
    """By scipy's exp10, which takes numbers one by one: numpy's exp may round by a number's place in the array."""
    return np.asarray(median * exp10(sigma * 0.4342944819032518 * ndtri(u)))


def _candidates(
    seed: int, trait: str, region: Region, reach: float, numbers: int, per_cell: int
) -> tuple[Points, NDArray[np.float64]]:
    """Random points, and further random numbers for each: `per_cell` in every lattice cell in reach."""
    cells = region.cells(reach, CELL_UM)
    u = uniforms(hashes(seed, trait, cells), per_cell * (3 + numbers)).reshape(-1, per_cell, 3 + numbers)
    corners = np.stack(np.meshgrid(*cells, indexing="ij"), axis=-1).reshape(-1, 1, 3)
    points = (corners + u[..., :3]) * CELL_UM
    return points.reshape(-1, 3), u[..., 3:].reshape(-1, numbers)


def _thinned(points: Points, radius: Column, rank: Column) -> NDArray[np.bool_]:
    """Which points stay: those that overlap none of higher rank (Matérn's second hard-core process).

    Purely local, so the same whatever region is asked for; pairs may touch and overlap a little.
    """
    pairs = cKDTree(points).query_pairs(2 * float(radius.max(initial=0.0)), output_type="ndarray")
    apart = points[pairs[:, 0]] - points[pairs[:, 1]]
    near = 0.88 * (radius[pairs[:, 0]] + radius[pairs[:, 1]])
    clash = pairs[(apart * apart).sum(axis=1) < near * near]
    loser = np.where(rank[clash[:, 0]] < rank[clash[:, 1]], clash[:, 0], clash[:, 1])
    stays = np.ones(len(points), np.bool_)
    stays[loser] = False
    return stays


def _presence(density_per_mm3: float, per_cell: int) -> float:
    return density_per_mm3 * 1e-9 * CELL_UM**3 / per_cell


def _pyramid_axis(u: NDArray[np.float64]) -> Points:
    """Towards the surface (-y), scattered; one in twelve upside down."""
    tilt = ndtri(u[:, :2]) * 0.22
    sign = np.where(u[:, 2] < 1 / 12, 1.0, -1.0)
    return _unit(np.stack([tilt[:, 0], sign, tilt[:, 1]], axis=1))


@dataclass(frozen=True)
class Neurons:
    """Bodies, their dendrites and the lipofuscin that some hold."""

    bodies: Bodies
    dendrites: Tubes
    grains: Grains


def neurons(seed: int, region: Region, traits: Traits, contrast: float) -> Neurons:
    """All neurons of which any part reaches into the region."""
    reach = traits.apical_length_um[1] + 2 * traits.half_width_um[1] + 4
    points, u = _candidates(seed, "neuron", region, reach + CELL_UM, 48, CANDIDATES)
    width = between(traits.half_width_um, u[:, 0] * np.sqrt(u[:, 0]))
    here = u[:, 1] < _presence(traits.neurons_per_mm3 * KEPT, CANDIDATES) * region.surface.crowding(points)
    points, u, width = points[here], u[here], width[here]
    stays = _thinned(points, width, u[:, 2])
    stays &= beside_vessels(points, width, vessels(seed, region.grown(reach + CELL_UM), traits))
    points, u, width = points[stays], u[stays], width[stays]
    bodies = _bodies(points, width, u[:, 3:16], traits, contrast)
    dendrites = _dendrites(bodies, u[:, 16:42], traits)
    holding = u[:, 42] < traits.grain_share
    pole = bodies.centre + _directions(u[:, 43:46]) * (0.6 * bodies.half_width[:, None])
    grains = _clusters(pole[holding], u[holding, 46], traits)
    near = region.near(bodies.centre, bodies.reach)
    return Neurons(bodies.only(near), dendrites.within(region, 2.0), _near_grains(grains, region))


def _bodies(points: Points, width: Column, u: NDArray[np.float64], traits: Traits, contrast: float) -> Bodies:
    """Pear-shaped bodies of pyramidal cells and rounded ones of others, from 13 uniforms each."""
    pyramidal = u[:, 0] < traits.pyramidal_share
    amplitude = _log_normal(traits.cell_brightness, traits.cell_brightness_spread, u[:, 4])
    return Bodies(
        centre=points,
        axis=np.where(pyramidal[:, None], _pyramid_axis(u[:, 1:4]), _directions(u[:, 1:4])),
        flat=_directions(u[:, 5:8]),
        half_length=width * np.where(pyramidal, 1.15 + 0.5 * u[:, 8], 1.0 + 0.25 * u[:, 8]),
        half_width=width,
        taper=np.where(pyramidal, 0.35 + 0.3 * u[:, 9], 0.0),
        flattening=0.7 * u[:, 10],
        brightness=1 + contrast * np.clip(amplitude, *traits.cell_brightness_range),
        nucleus=np.where(u[:, 11] < traits.nucleus_share, 0.25 + 0.5 * u[:, 12], 0.0),
    )


def _dendrites(bodies: Bodies, u: NDArray[np.float64], traits: Traits) -> Tubes:
    """An apical dendrite in two pieces for pyramidal cells, up to four basal ones for all."""
    pyramidal, own = bodies.taper > 0, bodies.brightness - 1
    strong, fair, weak = 1 + 0.75 * own, 1 + 0.5 * own, 1 + 0.2 * own
    w = bodies.half_width
    length = between(traits.apical_length_um, u[:, 0])[:, None]
    knee = bodies.centre + bodies.axis * (bodies.half_length[:, None] + 0.4 * length)
    end = knee + _unit(bodies.axis + 0.25 * ndtri(u[:, 1:4])) * (0.6 * length)
    knee_radius, end_radius = 0.16 * w + 0.3, 0.35 + 0.4 * u[:, 4]
    pieces = [
        Tubes(bodies.centre, knee, 0.62 * w, knee_radius, strong, fair).only(pyramidal),
        Tubes(knee, end, knee_radius, end_radius, fair, weak).only(pyramidal),
    ]
    for k in range(4):
        v = u[:, 5 + 5 * k : 10 + 5 * k]
        free = _directions(v[:, :3])
        # away from the apical dendrite
        along = (free * bodies.axis).sum(axis=1, keepdims=True)
        way = _unit(free - bodies.axis * (along + 0.45))
        stop = bodies.centre + way * (w + between(traits.basal_length_um, v[:, 3]))[:, None]
        pieces.append(Tubes(bodies.centre, stop, 0.42 * w, np.full_like(w, 0.4), strong, weak).only(v[:, 4] < 0.6))
    return joined(pieces)


def glia(seed: int, region: Region, traits: Traits) -> Bodies:
    """Small round or oval bodies, weakly stained: not neurons."""
    points, u = _candidates(seed, "glia", region, 10.0, 10, 2)
    keep = (u[:, 0] < _presence(traits.glia_per_mm3, 2)) & region.near(points, 10.0)
    points, u = points[keep], u[keep]
    zeros = np.zeros(len(u))
    width = 1.9 + 1.4 * u[:, 1]
    light = 1 + _log_normal(traits.glia_brightness, 0.6, u[:, 2])
    return Bodies(
        points, _directions(u[:, 3:6]), _directions(u[:, 6:9]), width * (1 + 0.5 * u[:, 9]), width, zeros, zeros,
        light, zeros,
    )  # fmt: skip


def loose_grains(seed: int, region: Region, traits: Traits) -> Grains:
    """Lipofuscin outside neurons: single grains, and clusters the size of a cell."""
    points, u = _candidates(seed, "grain", region, 8.0, 4, 2)
    single = u[:, 0] < _presence(traits.free_grains_per_mm3, 2)
    lone = Grains(
        points[single],
        between(traits.grain_radius_um, u[single, 1] ** 2),
        _log_normal(traits.grain_brightness, 0.6, u[single, 2]),
    )
    spots, v = _candidates(seed, "cluster", region, 8.0, 2, 1)
    here = v[:, 0] < _presence(traits.grain_clusters_per_mm3, 1)
    several = _clusters(spots[here], v[here, 1], traits)
    both = Grains(*(np.concatenate([getattr(lone, name), getattr(several, name)]) for name in vars(lone)))
    return _near_grains(both, region)


def _clusters(spots: Points, u: Column, traits: Traits) -> Grains:
    """Three to eight grains within a few µm of each spot; their numbers are keyed by the spot's."""
    v = uniforms((u * 2.0**52).astype(np.uint64), 48).reshape(-1, 8, 6)
    kept = np.arange(8)[None] < 3 + (v[:, :1, 5] * 6).astype(np.int64)
    centre = spots[:, None] + ndtri(v[..., :3]).clip(-2.0, 2.0) * 1.5
    radius = between(traits.grain_radius_um, v[..., 3] ** 2)
    return Grains(centre[kept], radius[kept], _log_normal(traits.grain_brightness, 0.6, v[..., 4])[kept])


def _near_grains(grains: Grains, region: Region) -> Grains:
    near = region.near(grains.centre, grains.radius + 1.0)
    return Grains(grains.centre[near], grains.radius[near], grains.brightness[near])
