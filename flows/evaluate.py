"""Flow evaluate."""

from __future__ import annotations

from pathlib import Path

from prefect import flow

from flows.stage import run_stages
from neurovol.settings import Overrides


@flow(name="evaluate", flow_run_name="evaluate {project_file.parent.name}")
def evaluate(
    project_file: Path,
    settings: Overrides | None = None,
    redo: bool = False,
) -> None:
    """Predict the baselines on the test boxes, score the methods, and write the report.

    Args:
        project_file: The project's TOML file.
        settings: Sections to use in place of the project file's.
        redo: Build this stage's stale results anew, or all of its results if none is stale.
    """
    run_stages("evaluate", ("evaluate", "report"), project_file, None, redo, settings)
