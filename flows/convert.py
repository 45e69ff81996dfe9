"""Flow convert."""

from __future__ import annotations

from pathlib import Path

from prefect import flow

from flows.stage import run_stages
from neurovol.settings import Overrides


@flow(name="convert", flow_run_name="convert {project_file.parent.name}")
def convert(
    project_file: Path,
    sample: str | None = None,
    settings: Overrides | None = None,
    redo: bool = False,
) -> None:
    """Sources and annotations to chunked OME-Zarr, with pyramids and histograms.

    Args:
        project_file: The project's TOML file.
        sample: Only this sample; default all.
        settings: Sections to use in place of the project file's.
        redo: Build this stage's stale results anew, or all of its results if none is stale.
    """
    run_stages("convert", ("convert", "annotate"), project_file, sample, redo, settings)
