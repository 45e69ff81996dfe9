"""What a conversion leaves for looking at a sample, once its levels are written: tissue mask and preview."""

from __future__ import annotations

import time
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from distributed import Client
from numpy.typing import NDArray

from neurovol.geometry import Box, windows
from neurovol.levels import coarsening
from neurovol.progress import Progress, Report, silent
from neurovol.report.preview import LARGEST_SIDE, preview_file
from neurovol.settings import StoreSettings
from neurovol.stages.tissue import remove_tissue, write_tissue
from neurovol.volume.omemeta import colours
from neurovol.volume.omezarr import VolumeInfo, VolumeReader, open_volume
from neurovol.volume.stored import sweep_leftovers, write_bytes

PIECE = (32, 256, 256)  # looked at once
LARGEST_REREAD = 2**28  # voxels: level 0 of a larger volume is not read once more for a picture


def make_overview(
    store: Path,
    client: Client,
    settings: StoreSettings,
    constants: tuple[Sequence[float], Sequence[float]],
    preview: Path,
    *,
    name: str = "",
    retries: int = 2,
    report: Report = silent,
    near: Path | None = None,
) -> dict[str, Any]:
    """Make the tissue mask and the preview that the settings ask for, of an image whose levels are all written.

    `constants` are the channels' (low, high) of normalisation, between which the preview shows them. Both are made
    from nothing each time, to the same bytes; what is not asked for is removed where an earlier conversion left it.
    The result goes into the image's attributes. `near`: see settled.
    """
    if not settings.tissue:
        remove_tissue(store)
    if not settings.preview:
        preview.unlink(missing_ok=True)
    start, wanted = time.monotonic(), [settings.tissue, settings.preview].count(True)

    def say(done: int) -> None:
        if wanted:
            report(Progress(f"overview {name}".strip(), done, wanted, "parts", done, time.monotonic() - start))

    say(0)
    attributes = {}
    if settings.tissue:
        record = write_tissue(client, store, retries, near)
        attributes["tissue"] = {"level": record["level"], "share": record["share"]}
        say(1)
    if settings.preview:
        write_preview(store, list(zip(*constants, strict=True)), preview)
        say(wanted)
    return attributes


def write_preview(store: Path, display: Sequence[tuple[float, float]], file: Path) -> None:
    """A PNG of the maximum along z; whole or not at all."""
    info = open_volume(store, allow_incomplete=True)
    level = preview_level(info)
    coarser = coarsening(info.factors[:level])
    pixel_size_um = (info.voxel_size_um[1] * coarser[1], info.voxel_size_um[2] * coarser[2])
    sweep_leftovers(file)
    write_bytes(file, preview_file(projection(info, level), display, colours(len(display)), pixel_size_um))


def preview_level(info: VolumeInfo) -> int:
    """The finest level of at most 2048 × 2048 voxels along y and x, else the coarsest; level 0 only if it is small."""
    for level in range(info.levels):
        small = level > 0 or prod(info.shape) <= LARGEST_REREAD
        if small and max(info.level_shape(level)[1:]) <= LARGEST_SIDE:
            return level
    return info.levels - 1


def projection(info: VolumeInfo, level: int) -> NDArray[Any]:
    """The maximum along z of a level, (c, y, x), of a volume without channels (1, y, x); read in bounded pieces."""
    shape = info.level_shape(level)
    reader = VolumeReader(str(info.path), level, allow_incomplete=True)
    result = np.zeros((info.channels or 1, *shape[1:]), info.dtype)
    for window in windows(Box.of_shape(shape), PIECE, (0, 0, 0), (1, 1, 1)):
        part = result[(slice(None), *window.write.slices[1:])]
        np.maximum(part, reader.read(window.write).max(axis=-3), out=part)
    return result
