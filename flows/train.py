"""Flow train."""

from __future__ import annotations

from pathlib import Path

from prefect import flow

from flows.stage import run_stages
from neurovol.settings import Overrides


@flow(name="train", flow_run_name="train {project_file.parent.name}")
def train(
    project_file: Path,
    settings: Overrides | None = None,
    redo: bool = False,
) -> None:
    """Train the 3D U-Net on annotated and pseudo-labelled voxels, and its baseline.

    Args:
        project_file: The project's TOML file.
        settings: Sections to use in place of the project file's.
        redo: Build this stage's stale results anew, or all of its results if none is stale.
    """
    run_stages("train", ("train",), project_file, None, redo, settings)
