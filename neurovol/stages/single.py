"""Sources to one OME-Zarr, without a project file: a project of one sample whose image lies where asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neurovol.errors import UserError
from neurovol.project import Project
from neurovol.projectfile import checked, with_overrides
from neurovol.settings import ProjectSettings
from neurovol.stages.steps import Steps

SUFFIX = ".ome.zarr"


@dataclass(frozen=True)
class SingleImage(Project):
    """A project whose only image lies at `dest`, its ledger, histogram and preview beside it."""

    dest: Path

    def image(self, sample: str) -> Path:
        return self.dest

    def ledger(self, sample: str, step: str) -> Path:
        return self.dest.with_name(f"{self.dest.name}.{step}.jsonl")

    def progress(self, sample: str, step: str) -> Path:
        return self.dest.with_name(f"{self.dest.name}.{step}-progress.ome.zarr")

    def histogram(self, sample: str) -> Path:
        return self.dest.with_name(f"{self.dest.name}.histogram.npz")

    def preview(self, sample: str) -> Path:
        return self.dest.with_name(f"{self.dest.name}.preview.png")


def single_conversion(
    sources: Sequence[Path],
    dest: Path,
    voxel_size_um: list[float] | None,
    channels: list[int] | None,
    overrides: dict[str, Any] | None = None,
) -> Steps:
    """The steps that convert `sources`, the channels of one sample, to `dest`; UserError where that cannot be.

    `overrides` are settings as `section.key`, with their values.
    """
    if not dest.name.endswith(".zarr"):
        raise UserError(f"{dest}: the result is an OME-Zarr, so its name must end in .zarr; try {dest.name}{SUFFIX}")
    sample: dict[str, Any] = {"name": "image", "source": [source.absolute() for source in sources]}
    if channels is not None:
        sample["channels"] = channels
    if voxel_size_um is not None:
        sample["voxel_size_um"] = voxel_size_um
    values = with_overrides({"name": "single", "samples": [sample]}, overrides or {})
    settings = checked(ProjectSettings, "convert SOURCE DEST", **values)
    return Steps(SingleImage(dest.absolute(), settings, dest.absolute()))
