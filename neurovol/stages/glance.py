"""A sample at a glance, for people who watch: its middle slice and its maximum along z, with what a network found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurovol.geometry import Box
from neurovol.levels import coarsening
from neurovol.project import Step
from neurovol.report.figures import preview_jpeg
from neurovol.report.panels import Fit
from neurovol.report.preview import coloured, projected_display
from neurovol.stages.overview import projection
from neurovol.stages.predict import normalisation_of
from neurovol.stages.steps import Steps
from neurovol.volume.omemeta import colours
from neurovol.volume.omezarr import VolumeInfo, VolumeReader, open_volume

PIXELS = 400  # of a picture's longer side
FOUND = {"pseudolabel": "neurons by the 2D CNN (pseudo-labels)", "segment": "neurons by the U-Net"}  # by stage


@dataclass(frozen=True, eq=False)
class Glance:
    """A small picture, and what it shows."""

    caption: str
    jpeg: bytes


def glances(steps: Steps, name: str, found: Step | None = None) -> Iterator[Glance]:
    """Two pictures of a converted sample; `found` is a finished step whose probabilities are outlined at 0.5."""
    info = open_volume(steps.project.image(name))
    level = glance_level(info)
    predicted = None if found is None else open_volume(found.output)
    outlined = "" if found is None else f"; outlined: {FOUND[found.stage]}, p ≥ 0.5"
    middle = info.level_shape(level)[0] // 2
    depth_um = info.shape[0] * info.voxel_size_um[0]
    shown = _display(info)

    planes = middle_slice(info, level)
    p = None if predicted is None else middle_slice(predicted, level)[0]
    at_um = (middle + 0.5) * depth_um / info.level_shape(level)[0]
    yield Glance(f"slice in the middle, {at_um:.0f} µm deep{outlined}", _picture(info, level, planes, shown, p))

    planes = projection(info, level)
    p = None if predicted is None else projection(predicted, level)[0]
    shown = projected_display(planes, shown)
    yield Glance(f"maximum along z over {depth_um:.0f} µm{outlined}", _picture(info, level, planes, shown, p))


def glance_level(info: VolumeInfo) -> int:
    """The coarsest level that fills a picture, or level 0."""
    return max(n for n in range(info.levels) if n == 0 or max(info.level_shape(n)[1:]) >= PIXELS)


def middle_slice(info: VolumeInfo, level: int) -> NDArray[Any]:
    """The slice in the middle of a level, (c, y, x), of a volume without channels (1, y, x)."""
    depth, height, width = info.level_shape(level)
    box = Box((depth // 2, 0, 0), (depth // 2 + 1, height, width))
    return np.asarray(VolumeReader(str(info.path), level).read(box).reshape(-1, height, width))


def _display(info: VolumeInfo) -> list[tuple[float, float]]:
    normalisation = normalisation_of(info.path)
    return list(zip(normalisation.low, normalisation.high, strict=True))


def _picture(
    info: VolumeInfo,
    level: int,
    planes: NDArray[Any],
    display: Sequence[tuple[float, float]],
    probability: NDArray[Any] | None,
) -> bytes:
    coarser = coarsening(info.factors[:level])
    pixel_size_um = (info.voxel_size_um[1] * coarser[1], info.voxel_size_um[2] * coarser[2])
    picture = coloured(planes, display, colours(len(planes)), Fit(planes.shape[2], planes.shape[1], 1.0))
    return preview_jpeg(picture, probability, (0, 255), pixel_size_um, PIXELS)
