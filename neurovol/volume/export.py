"""Phantoms as TIFF files: what a lab's stitching tool would have handed over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from neurovol.errors import UserError
from neurovol.geometry import Box
from neurovol.progress import Progress, Report, silent
from neurovol.samplesettings import Phantom
from neurovol.volume.phantom import PhantomSource

SLAB = 16  # slices made at once


def plan_phantom(phantom: Phantom, dest: Path, truth: Path | None = None) -> str:
    """What writing a phantom would do, for people."""
    voxels = prod(phantom.shape)
    shape = " × ".join(map(str, phantom.shape))
    lines = [f"{dest}: {shape} voxels (z, y, x), uint16, {2 * voxels / 1e6:,.1f} MB, seed {phantom.seed}"]
    if truth is not None:
        lines.append(f"{truth}: its truth, uint8, {voxels / 1e6:,.1f} MB")
    return "\n".join(lines)


def write_phantom(phantom: Phantom, dest: Path, truth: Path | None = None, report: Report = silent) -> None:
    """Write a phantom as OME-TIFF, and its truth (uint8, 1 = neuron) if asked; slab by slab, whole or not at all."""
    source = PhantomSource(phantom.shape, phantom.seed, phantom.contrast)
    _write(dest, source, np.dtype(np.uint16), lambda box: source.read(box)[0], report)
    if truth is not None:
        _write(truth, source, np.dtype(np.uint8), source.truth, report)


def _write(
    dest: Path, source: PhantomSource, dtype: np.dtype[Any], read: Callable[[Box], NDArray[Any]], report: Report
) -> None:
    if dest.suffix.lower() not in (".tif", ".tiff"):
        raise UserError(f"{dest}: phantoms are written as TIFF; use a name that ends in .tif")
    depth, height, width = source.shape[1:]
    size = source.voxel_size_um

    def slices() -> Iterator[NDArray[Any]]:
        for z in range(0, depth, SLAB):
            report(Progress(f"phantom {dest.name}", z, depth, "slices"))
            yield from read(Box((z, 0, 0), (min(z + SLAB, depth), height, width)))
        report(Progress(f"phantom {dest.name}", depth, depth, "slices"))

    sizes = {f"PhysicalSize{axis}": um for axis, um in zip("ZYX", size, strict=True)}
    units = {f"PhysicalSize{axis}Unit": "µm" for axis in "ZYX"}
    partial = dest.with_name(f"{dest.name}.partial")
    try:
        dest.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(
            partial,
            slices(),
            shape=(depth, height, width),
            dtype=dtype,
            ome=True,
            photometric="minisblack",
            metadata={"axes": "ZYX", **sizes, **units},
        )
        partial.replace(dest)
    except OSError as error:
        raise UserError(f"{dest}: cannot be written: {error.strerror}; choose another place, or free space") from None
    finally:
        partial.unlink(missing_ok=True)
