"""What a report is made of: frozen values that the stages fill in. Every part but the name may be absent.

Planes are (v, h): vertical and horizontal on the page; xy planes are (y, x), xz planes (z, x).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

METHODS = {  # fixed order and titles
    "cnn2d": "2D CNN",
    "unet3d_sparse": "U-Net, annotated voxels only",
    "unet3d_pseudo": "U-Net with pseudo-labels",
}

Image = NDArray[Any]  # raw intensities, any real dtype
Probability = NDArray[np.float32] | NDArray[np.uint8]  # uint8: p = value / 255


def method_title(method: str) -> str:
    return METHODS.get(method, method)


def in_order(methods: Mapping[str, Any] | set[str]) -> list[str]:
    """Methods in the fixed order, unknown ones last.

    >>> in_order({"unet3d_pseudo", "mine", "cnn2d"})
    ['cnn2d', 'unet3d_pseudo', 'mine']
    """
    return [m for m in METHODS if m in methods] + sorted(m for m in methods if m not in METHODS)


@dataclass(frozen=True, eq=False)
class PlaneView:
    """One plane of a test box: the raw slice, its annotation and each method's probability, all (v, h)."""

    sample: str
    plane: Literal["xy", "xz"]
    position: str  # where the plane lies, for example "z = 31"
    raw: Image
    window: tuple[float, float]  # intensities shown black and white
    annotation: NDArray[np.uint8] | None  # 0 unlabelled, 1 background, 2 neuron, 3 ignore
    predictions: Mapping[str, Probability]  # by method
    pixel_size_um: tuple[float, float]  # v, h
    box: str = ""  # the test box, for example "z 0–30, y 128–384, x 0–256"


@dataclass(frozen=True, eq=False)
class Overview:
    """A whole sample at a glance: usually the maximum projection of a coarse level, (v, h) or RGB (v, h, 3)."""

    sample: str
    image: Image
    probability: Probability | None
    window: tuple[float, float]
    pixel_size_um: tuple[float, float]  # v, h
    caption: str = ""
    tissue: NDArray[np.uint8] | None = None  # 1 where any depth is tissue, (v, h)
    tissue_share: float | None = None  # of its voxels, 0 to 1


@dataclass(frozen=True)
class Curve:
    """The loss of one network over its training steps."""

    method: str
    steps: list[int]
    losses: list[float]


@dataclass(frozen=True)
class SampleRow:
    """One sample of the project."""

    name: str
    shape: tuple[int, int, int]
    voxel_size_um: tuple[float, float, float]
    source: str = ""
    annotated_share: float | None = None  # of its voxels, train and test together, 0 to 1

    @property
    def voxels(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class QuarantinedBlock:
    """A block that was given up on after its last attempt: its voxels are missing from the output."""

    index: int
    reason: str  # the last line of the traceback
    box: str = ""


@dataclass(frozen=True)
class StageRow:
    """One stage on one sample: how long it took and how it went."""

    stage: str
    sample: str = ""  # "" for a stage of the whole project, such as training
    seconds: float | None = None
    blocks: int | None = None
    voxels: int | None = None
    retries: int = 0
    note: str = ""
    quarantined: tuple[QuarantinedBlock, ...] = ()

    @property
    def voxels_per_second(self) -> float | None:
        return self.voxels / self.seconds if self.voxels and self.seconds else None


@dataclass(frozen=True)
class ModelCard:
    """What a trained network is, and how it was trained."""

    method: str
    name: str  # the model's folder
    network: str = ""  # its spec in words, for example "16, 32, 64 channels; pooling 2³, 2³"
    parameters: int | None = None
    steps: int | None = None
    seconds: float | None = None
    precision: str = ""  # and why, for example "bf16: 2.1 times as fast as fp32 in the trial"
    voxel_size_um: tuple[float, float, float] | None = None
    normalisation: str = ""
    further: tuple[tuple[str, str], ...] = ()  # more rows, as (name, value)


@dataclass(frozen=True, eq=False)
class ReportData:
    """Everything `report.html` shows.

    `metrics` has the shape of metrics.json: {"threshold": 0.5, "methods": {"cnn2d": {"dice", "precision",
    "recall", "average_precision", "confusion": {"tn", "fp", "fn", "tp"}}, …}}; a value that is undefined is
    None or NaN. `reference_note` says what the reference is where it is not an expert's annotation.
    """

    project: str
    created: str  # ISO 8601
    version: str
    reference_note: str = ""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    samples: tuple[SampleRow, ...] = ()
    views: tuple[PlaneView, ...] = ()
    overviews: tuple[Overview, ...] = ()
    curves: tuple[Curve, ...] = ()
    stages: tuple[StageRow, ...] = ()
    models: tuple[ModelCard, ...] = ()
    settings_toml: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def threshold(self) -> float:
        return float(self.metrics.get("threshold", 0.5))
