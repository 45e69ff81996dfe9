"""What the metadata of a TIFF tell, by OME or ImageJ: the voxel size, and how many planes there should be."""

from __future__ import annotations

from math import prod
from typing import Any
from xml.etree import ElementTree

VoxelSize = tuple[float, float, float]

_MICROMETRES = {
    "µm": 1.0, "μm": 1.0, "um": 1.0, "\\u00B5m": 1.0, "micron": 1.0, "microns": 1.0, "micrometer": 1.0,
    "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6, "inch": 25400.0, "in": 25400.0,
}  # fmt: skip


def told_by(tif: Any, samples: int) -> tuple[VoxelSize | None, int | None]:
    """By OME or ImageJ metadata: (z, y, x) in µm, None unless all three are told; the number of planes."""
    if tif.is_ome:
        return _ome_metadata(tif.ome_metadata)
    if tif.is_imagej:
        told = tif.imagej_metadata or {}
        planes = int(told["images"]) * samples if "images" in told else None
        return _imagej_voxel_size(told, tif.pages[0].tags), planes
    return None, None


def _ome_metadata(xml: str) -> tuple[VoxelSize | None, int | None]:
    try:
        pixels = next((e for e in ElementTree.fromstring(xml).iter() if e.tag.endswith("}Pixels")), None)
    except ElementTree.ParseError:
        return None, None
    if pixels is None:
        return None, None
    planes = prod(int(pixels.get(f"Size{axis}", "1")) for axis in "CZT")
    sizes = []
    for axis in "ZYX":
        value = pixels.get(f"PhysicalSize{axis}")
        unit = pixels.get(f"PhysicalSize{axis}Unit", "µm")
        if value is None or unit not in _MICROMETRES:
            return None, planes
        sizes.append(float(value) * _MICROMETRES[unit])
    return _positive(sizes), planes


def _imagej_voxel_size(metadata: dict[str, Any], tags: Any) -> VoxelSize | None:
    """ImageJ tells pixels per unit in the resolution tags, the plane spacing in its own metadata."""
    factor = _MICROMETRES.get(str(metadata.get("unit", "")))
    if factor is None or "spacing" not in metadata or "XResolution" not in tags or "YResolution" not in tags:
        return None
    per_unit = [tags[name].value for name in ("YResolution", "XResolution")]
    if any(n == 0 or d == 0 for n, d in per_unit):
        return None
    return _positive([abs(float(metadata["spacing"])) * factor, *(d / n * factor for n, d in per_unit)])


def _positive(sizes: list[float]) -> VoxelSize | None:
    z, y, x = sizes
    return (z, y, x) if all(0 < s < float("inf") for s in sizes) else None
