"""OME-Zarr 0.5 metadata of a volume (https://ngff.openmicroscopy.org/0.5/), as plain dictionaries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from neurovol.geometry import Zyx

VERSION = "0.5"
_COLOURS = ("00FF00", "FF0000", "0000FF", "FFFFFF")


def multiscales(
    name: str,
    voxel_size_um: tuple[float, float, float],
    factors: Sequence[Zyx],
    has_channels: bool,
    how: str,
    origin_um: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> list[dict[str, Any]]:
    """One image of 1 + len(factors) levels, lengths in micrometres; `origin_um` is where its first voxel lies.

    The first voxel of a level that is coarser by f lies in the middle of f fine ones, so it is
    translated by (f - 1) / 2 fine voxels:  | 0 | 1 |  becomes  |  0.5  |
    """
    axes: list[dict[str, str]] = [{"name": a, "type": "space", "unit": "micrometer"} for a in "zyx"]
    channel = [{"name": "c", "type": "channel"}] if has_channels else []
    total = (1, 1, 1)
    datasets = []
    for level, step in enumerate([(1, 1, 1), *factors]):
        total = (total[0] * step[0], total[1] * step[1], total[2] * step[2])
        scale = [1.0] * has_channels + [s * f for s, f in zip(voxel_size_um, total, strict=True)]
        middle = [o + s * (f - 1) / 2 for o, s, f in zip(origin_um, voxel_size_um, total, strict=True)]
        shift = [0.0] * has_channels + middle
        transformations: list[dict[str, Any]] = [{"type": "scale", "scale": scale}]
        if level or any(origin_um):
            transformations.append({"type": "translation", "translation": shift})
        datasets.append({"path": str(level), "coordinateTransformations": transformations})
    return [{"name": name, "type": how, "axes": [*channel, *axes], "datasets": datasets}]


def colours(channels: int) -> tuple[str, ...]:
    """In which colours so many channels are shown, as RRGGBB; one alone is white.

    >>> colours(1), colours(2)
    (('FFFFFF',), ('00FF00', 'FF0000'))
    """
    return tuple(_COLOURS[c % len(_COLOURS)] for c in range(channels)) if channels > 1 else ("FFFFFF",)


def omero(windows: Sequence[tuple[float, float]], largest: float) -> dict[str, Any]:
    """How viewers show the channels at first: from each window's start (black) to its end (full colour)."""
    channels = [
        {
            "label": f"channel {c}",
            "color": colour,
            "active": True,
            "coefficient": 1,
            "family": "linear",
            "inverted": False,
            "window": {"min": 0, "max": largest, "start": start, "end": max(end, start + 1)},
        }
        for c, ((start, end), colour) in enumerate(zip(windows, colours(len(windows)), strict=True))
    ]
    return {"name": "", "channels": channels, "rdefs": {"model": "color" if len(windows) > 1 else "greyscale"}}


def image_label(named: Sequence[tuple[int, str, str]] = ()) -> dict[str, Any]:
    """Marks a group as the labels of the image two groups up; `named` are values with name and colour, RRGGBBAA.

    >>> image_label([(1, "done", "00FF0080")])["colors"]
    [{'label-value': 1, 'rgba': [0, 255, 0, 128]}]
    """
    marked: dict[str, Any] = {"version": VERSION, "source": {"image": "../../"}}
    if named:
        marked["colors"] = [{"label-value": value, "rgba": list(bytes.fromhex(rgba))} for value, _, rgba in named]
        marked["properties"] = [{"label-value": value, "name": name} for value, name, _ in named]
    return marked
