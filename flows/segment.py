"""Flow segment."""

from __future__ import annotations

from pathlib import Path

from prefect import flow

from flows.stage import run_stages
from neurovol.settings import Overrides


@flow(name="segment", flow_run_name="segment {project_file.parent.name}")
def segment(
    project_file: Path,
    sample: str | None = None,
    settings: Overrides | None = None,
    redo: bool = False,
) -> None:
    """The U-Net over whole samples, block by block.

    Args:
        project_file: The project's TOML file.
        sample: Only this sample; default all.
        settings: Sections to use in place of the project file's.
        redo: Build this stage's stale results anew, or all of its results if none is stale.
    """
    run_stages("segment", ("segment",), project_file, sample, redo, settings)
