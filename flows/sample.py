"""Flow sample: one sample with a model that is there already."""

from __future__ import annotations

from pathlib import Path

from prefect import flow

from flows.convert import convert
from flows.segment import segment
from flows.stage import final_summary, of_stages
from neurovol.settings import Overrides


@flow(name="sample", flow_run_name="sample {sample}", retries=0)
def sample(project_file: Path, sample: str, settings: Overrides | None = None, redo: bool = False) -> None:
    """Convert one sample, cover it with the model, and write the report; whatever of it is done already stays.

    Args:
        project_file: The project's TOML file.
        sample: The sample to do: a declared one, with the project's model (or segment.checkpoint), or one that lies in
            the inbox, with the model that [inbox] names.
        settings: Sections to use in place of the project file's.
        redo: Build the sample's stale results anew, or all of them if none is stale.
    """
    with of_stages():
        convert(project_file, sample=sample, settings=settings, redo=redo)
        segment(project_file, sample=sample, settings=settings, redo=redo)
        final_summary(f"sample {sample}", project_file, settings, sample)
