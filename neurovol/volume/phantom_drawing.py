"""Shapes in µm drawn into voxels: each only within its own bounding box, with soft edges.

Distances come from coordinates relative to the object, taken from absolute voxel indices; outside its
reach an object changes nothing, not even by rounding. So a voxel never depends on the box it is read in.
"""

from __future__ import annotations

from math import ceil, floor, sqrt

import numpy as np
from numpy.typing import NDArray

from neurovol.geometry import Box, zyx
from neurovol.volume.phantom_lattice import Floats
from neurovol.volume.phantom_shapes import WALL_UM, Bodies, Body, Grains, Tubes
from neurovol.volume.phantom_traits import VoxelSize

WOBBLE_UM = 0.45  # how uneven outlines are
_EDGE_UM = 1.0  # an edge fades over this length, about a voxel; the optics blur it further


class Canvas:
    """A box of voxels and its coordinates."""

    def __init__(self, box: Box, voxel_size_um: VoxelSize) -> None:
        self.box = box
        self.voxel_size_um = voxel_size_um
        # voxel i's centre
        self.centres = [(np.arange(a, b) + 0.5) * s for (a, b), s in zip(box.pairs, voxel_size_um, strict=True)]

    def part(self, low: list[float], high: list[float]) -> Box | None:
        """The voxels of the box with centres between two corners in µm; None where there are none."""
        start, stop = [], []
        for i, s in enumerate(self.voxel_size_um):
            a = max(self.box.start[i], ceil(low[i] / s - 0.5))
            b = min(self.box.stop[i], floor(high[i] / s - 0.5) + 1)
            if b <= a:
                return None
            start.append(a)
            stop.append(b)
        return Box(zyx(start), zyx(stop))

    def offsets(self, part: Box, origin: list[float]) -> list[Floats]:
        """Distances of voxel centres from a point along each axis, shaped to broadcast."""
        out = []
        for axis, s in enumerate(part.within(self.box)):
            values = (self.centres[axis][s] - origin[axis]).astype(np.float32)
            out.append(values.reshape([-1 if a == axis else 1 for a in range(3)]))
        return out


def _dot(offsets: list[Floats], vector: list[float]) -> Floats:
    z, y, x = (o * np.float32(v) for o, v in zip(offsets, vector, strict=True))
    return np.asarray((z + y) + x)


def _square(offsets: list[Floats]) -> Floats:
    z, y, x = (o * o for o in offsets)
    return np.asarray((z + y) + x)


def _inside(distance: Floats, edge: float = _EDGE_UM) -> Floats:
    """1 inside, 0 outside, linear across the edge; overwrites the distances."""
    distance *= np.float32(-1 / edge)
    distance += np.float32(0.5)
    return np.clip(distance, 0, 1, out=distance)


def tube_distances(canvas: Canvas, tubes: Tubes) -> Floats:
    """Distance in µm to the nearest tube's wall, negative inside, at most WALL_UM."""
    out = np.full(canvas.box.shape, WALL_UM, np.float32)
    for a, b, r0, r1, *_ in tubes.rows():
        part = _tube_part(canvas, a, b, max(r0, r1) + WALL_UM)
        if part is not None:
            view = out[part.within(canvas.box)]
            np.minimum(view, _tube_distance(canvas, part, a, b, r0, r1)[0], out=view)
    return out


def draw_tubes(canvas: Canvas, image: Floats, tubes: Tubes) -> None:
    """Lay tubes of their brightness over the image."""
    for a, b, r0, r1, brightness, end_brightness in tubes.rows():
        part = _tube_part(canvas, a, b, max(r0, r1) + _EDGE_UM)
        if part is not None:
            distance, light = _tube_distance(canvas, part, a, b, r0, r1)
            light *= np.float32(end_brightness - brightness)
            light += np.float32(brightness)
            _lay(image[part.within(canvas.box)], _inside(distance), light)


def draw_grains(canvas: Canvas, image: Floats, grains: Grains) -> None:
    """Add balls of light."""
    for centre, radius, brightness in grains.rows():
        reach = radius + _EDGE_UM
        part = canvas.part([c - reach for c in centre], [c + reach for c in centre])
        if part is not None:
            distance = np.sqrt(_square(canvas.offsets(part, centre)))
            distance -= np.float32(radius)
            cover = _inside(distance)
            cover *= np.float32(brightness)
            image[part.within(canvas.box)] += cover


def draw_bodies(canvas: Canvas, image: Floats, bodies: Bodies, wobble: Floats, grain: Floats) -> None:
    """Lay cell bodies over the image: uneven cytoplasm, in some a darker nucleus."""
    for body, reach in bodies.rows():
        part = _body_part(canvas, body, reach)
        if part is None:
            continue
        at = part.within(canvas.box)
        distance, s, p2 = _body_distance(canvas, part, body, wobble[at])
        light = grain[at] * np.float32(0.16 * (body.brightness - 1))
        light += wobble[at] * np.float32(0.10 * (body.brightness - 1))
        light += np.float32(body.brightness)
        if body.nucleus:
            # a little off centre, on the side away from the tip
            shift, radius = 0.12 * body.half_length, 0.52 * body.half_width
            p2 += s * np.float32(2 * shift)
            p2 += np.float32(shift * shift)
            from_nucleus = np.sqrt(np.maximum(p2, 0, out=p2))
            from_nucleus -= np.float32(radius)
            dark = _inside(from_nucleus, 1.5)
            light -= dark * np.float32(body.nucleus * (body.brightness - 1))
        _lay(image[at], _inside(distance), light)


def mark_bodies(canvas: Canvas, labels: NDArray[np.uint8], bodies: Bodies, wobble: Floats) -> None:
    """Set the voxels whose centre lies in a body to 1."""
    for body, reach in bodies.rows():
        part = _body_part(canvas, body, reach)
        if part is not None:
            at = part.within(canvas.box)
            labels[at] |= _body_distance(canvas, part, body, wobble[at])[0] < 0


def _lay(image: Floats, cover: Floats, light: Floats) -> None:
    """Where cover is 1 the image becomes `light`; where it is 0 nothing changes."""
    change = light - image
    change *= cover
    image += change


def _tube_part(canvas: Canvas, a: list[float], b: list[float], reach: float) -> Box | None:
    low = [min(p, q) - reach for p, q in zip(a, b, strict=True)]
    return canvas.part(low, [max(p, q) + reach for p, q in zip(a, b, strict=True)])


def _tube_distance(
    canvas: Canvas, part: Box, a: list[float], b: list[float], r0: float, r1: float
) -> tuple[Floats, Floats]:
    """From the wall of a tube from a to b, negative inside; and the share of the way along it, 0 to 1."""
    way = [q - p for p, q in zip(a, b, strict=True)]
    length = sqrt(sum(w * w for w in way))
    offsets = canvas.offsets(part, a)
    s = _dot(offsets, [w / length for w in way])
    t = np.clip(s, 0, np.float32(length))
    # |p - t·axis|² = |p|² - t (2s - t)
    s *= 2
    s -= t
    s *= t
    square = _square(offsets)
    square -= s
    distance = np.sqrt(np.maximum(square, 0, out=square), out=square)
    t *= np.float32(1 / length)
    distance -= t * np.float32(r1 - r0)
    distance -= np.float32(r0)
    return distance, t


def _body_part(canvas: Canvas, body: Body, reach: float) -> Box | None:
    return canvas.part([c - reach for c in body.centre], [c + reach for c in body.centre])


def _body_distance(canvas: Canvas, part: Box, body: Body, wobble: Floats) -> tuple[Floats, Floats, Floats]:
    """Roughly the distance in µm from a body's outline; also the way along its axis, and |p|²."""
    offsets = canvas.offsets(part, body.centre)
    s, p2 = _dot(offsets, body.axis), _square(offsets)
    across = _dot(offsets, body.flat)
    across *= across
    across *= np.float32(body.flattening)
    across += p2
    across -= s * s
    np.maximum(across, 0, out=across)
    u = s * np.float32(1 / body.half_length)
    width = np.clip(u, -1.2, 1.2)
    width *= np.float32(-body.taper * body.half_width)
    width += np.float32((1 + 0.05 * (body.taper > 0)) * body.half_width)
    width *= width
    across /= width
    u *= u
    across += u
    distance = np.sqrt(across, out=across)
    distance -= np.float32(1)
    distance *= np.float32(body.half_width)
    distance += np.clip(wobble, -2, 2) * np.float32(WOBBLE_UM)
    return distance, s, p2
