"""Flow sample: one sample with a model that is there already."""

from __future__ import annotations

from pathlib import Path

from prefect import flow

from flows.convert import convert
from flows.segment import segment
from flows.stage import final_summary
from neurovol.settings import Overrides


@flow(name="sample", flow_run_name="sample {sample}")
def sample(project_file: Path, sample: str, settings: Overrides | None = None) -> None:
    """Convert one sample, cover it with the project's model (or segment.checkpoint), and write the report.

    Args:
        project_file: The project's TOML file.
        sample: The sample to do.
        settings: Sections to use in place of the project file's.
    """
    convert(project_file, sample=sample, settings=settings)
    segment(project_file, sample=sample, settings=settings)
    final_summary(f"sample {sample}", project_file, settings)
