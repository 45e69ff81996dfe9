"""What the metadata of Zarr arrays and OME-Zarr images tell: where the finest level lies, its axes, its voxel size."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from math import inf, prod
from pathlib import Path, PurePosixPath
from typing import Any

from neurovol.errors import UserError
from neurovol.volume.stored import open_volume
from neurovol.volume.tiff import MOST_CHANNELS, natural_key

VoxelSize = tuple[float, float, float]

LISTED = 8  # arrays that a message names
DEEPEST = 4  # groups within groups that are searched; a plate is plate / row / column / field

_AXES = {"t": "t", "time": "t", "c": "c", "channel": "c", "z": "z", "y": "y", "x": "x"}
_MICROMETRES = {
    "micrometer": 1.0, "micrometre": 1.0, "µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0, "nanometer": 1e-3,
    "nm": 1e-3, "angstrom": 1e-4, "millimeter": 1e3, "mm": 1e3, "centimeter": 1e4, "meter": 1e6,
}  # fmt: skip
_METADATA = ("zarr.json", ".zarray", ".zgroup", ".zattrs")


@dataclass(frozen=True)
class Node:
    """A Zarr array or group, as its metadata tell it."""

    folder: Path
    is_array: bool
    dimension_names: tuple[str | None, ...]
    attributes: dict[str, Any]
    files: tuple[Path, ...]


@dataclass(frozen=True)
class Described:
    """An array, and what else is told about it."""

    array: Node
    axes: tuple[str | None, ...]  # their names, as they are told; () where they are not
    voxel_size_um: VoxelSize | None
    files: tuple[Path, ...]  # metadata


def node_at(folder: Path) -> Node | None:
    files = tuple(folder / name for name in _METADATA if (folder / name).is_file())
    held = {file.name: _json(file) for file in files}
    about = held.get("zarr.json", {})
    attributes = about.get("attributes", {}) if about else held.get(".zattrs", {})
    told = about.get("dimension_names") or attributes.get("_ARRAY_DIMENSIONS")
    names = tuple(n if isinstance(n, str) else None for n in told) if isinstance(told, list) else ()
    is_array = about["node_type"] == "array" if "node_type" in about else ".zarray" in held
    return Node(folder, is_array, names, attributes, files) if files else None


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or not isinstance(content.get("attributes", {}), dict):
            raise ValueError("an object is expected")
    except ValueError as error:
        raise UserError(f"{file}: is no readable Zarr metadata: {error}; copy or export it again") from None
    return content


def described(path: Path) -> Described:
    node = node_at(path)
    if node is None:
        raise UserError(f"{path}: is no Zarr array or group, for it holds none of {', '.join(_METADATA[:3])}")
    if "neurovol" in node.attributes:
        open_volume(path)  # refuses an incomplete one
    if node.is_array:
        return Described(node, node.dimension_names, None, node.files)
    if _multiscales(node):
        return _finest(node)
    inside = list(islice(_below(path), LISTED + 1))
    if len(inside) == 1:
        return described(inside[0])
    listed = ", ".join(str(p) for p in inside[:LISTED]) + (", …" if len(inside) > LISTED else "")
    what = (
        f"several images or arrays: {listed}; give one of them" if inside else "no arrays; give a group with an image"
    )
    raise UserError(f"{path}: is a Zarr group without OME-Zarr multiscales that holds {what}")


def _below(folder: Path, depth: int = DEEPEST) -> Iterator[Path]:
    """The arrays and images inside a group."""
    for child in sorted((f for f in folder.iterdir() if f.is_dir()), key=lambda f: natural_key(f.name)):
        node = node_at(child)
        if node is not None and (node.is_array or _multiscales(node)):
            yield child
        elif node is not None and depth > 1:
            yield from _below(child, depth - 1)


def _multiscales(node: Node) -> list[Any]:
    """OME-Zarr 0.5 keeps its metadata under "ome", 0.4 and before beside other attributes."""
    ome = node.attributes.get("ome", node.attributes)
    found = ome.get("multiscales") if isinstance(ome, dict) else None
    return found if isinstance(found, list) else []


def _finest(group: Node) -> Described:
    try:
        multiscale = _multiscales(group)[0]
        dataset = multiscale["datasets"][0]
        inner = PurePosixPath(dataset["path"])
        told = multiscale.get("axes", list("tczyx"))  # before 0.3 always these, without names
        axes = [{"name": a} if isinstance(a, str) else a for a in told]
        names = tuple(str(a["name"]) for a in axes)
        steps = (*dataset.get("coordinateTransformations", ()), *multiscale.get("coordinateTransformations", ()))
        voxel_size_um = _voxel_size({a["name"].lower(): a.get("unit") for a in axes}, [n.lower() for n in names], steps)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise UserError(f"{group.folder}: its OME-Zarr multiscales are not as 0.4 or 0.5 has them: {error!r}") from None
    if inner.is_absolute() or ".." in inner.parts:
        raise UserError(f"{group.folder}: its finest level, {inner}, lies outside of it; give that array itself")
    array = node_at(group.folder / inner)
    if array is None or not array.is_array:
        raise UserError(
            f"{group.folder / inner}: there is no Zarr array, though the image names it as its finest level"
        )
    return Described(array, names, voxel_size_um, (*group.files, *array.files))


def _voxel_size(units: dict[str, Any], names: Sequence[str], steps: Sequence[dict[str, Any]]) -> VoxelSize | None:
    """(z, y, x) in µm by all scales together; None unless scale and unit of all three are told."""
    scales = [
        dict(zip(names, map(float, s["scale"]), strict=True)) for s in steps if s["type"] == "scale" and "scale" in s
    ]
    if not scales or any(units.get(a) not in _MICROMETRES for a in "zyx"):
        return None
    z, y, x = (prod(scale[a] for scale in scales) * _MICROMETRES[units[a]] for a in "zyx")
    return (z, y, x) if all(0 < s < inf for s in (z, y, x)) else None


def axes_of(where: object, shape: Sequence[int], names: Sequence[str | None]) -> str:
    """The axes of an array, one letter each; a UserError where they are not those of a sample.

    >>> axes_of("a", (2, 7, 9, 11), ()), axes_of("a", (7, 9, 2), ("y", "x", "channel"))
    ('czyx', 'yxc')
    """
    known = [_AXES.get((name or "").lower()) for name in names]
    if not any(known):
        return _axes_by_place(where, tuple(shape))
    axes = "".join(a or "?" for a in known)
    if "?" in axes or len(set(axes)) < len(axes) or not {"y", "x"} <= set(axes) or len(axes) != len(shape):
        told = ", ".join(map(str, names))
        raise UserError(f"{where}: its axes are ({told}) for the shape {tuple(shape)}; a sample has c, z, y and x only")
    if "t" in axes and shape[axes.index("t")] != 1:
        n = shape[axes.index("t")]
        raise UserError(f"{where}: holds {n} time points, but a sample has one; export the one you mean by itself")
    return axes


def _axes_by_place(where: object, shape: tuple[int, ...]) -> str:
    if len(shape) not in (3, 4):
        raise UserError(
            f"{where}: has {len(shape)} axes without names, its shape is {shape}; a sample has z, y, x or c, z, y, x"
        )
    if len(shape) == 4 and shape[0] > MOST_CHANNELS:
        raise UserError(
            f"{where}: its axes have no names, and of the shape {shape} the first, {shape[0]} long, would be the "
            f"channels; name the axes in its metadata (of Zarr `dimension_names` or `_ARRAY_DIMENSIONS`)"
        )
    return "zyx" if len(shape) == 3 else "czyx"
