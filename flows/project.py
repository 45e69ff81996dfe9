"""Flow project: train a project's model, cover its samples, and report."""

from __future__ import annotations

from pathlib import Path

from prefect import Flow, flow

from flows.convert import convert
from flows.evaluate import evaluate
from flows.pseudolabel import pseudolabel
from flows.segment import segment
from flows.stage import final_summary, of_stages, refuse_stale
from flows.train import train
from neurovol.settings import Overrides
from neurovol.stages.order import Stage

FLOWS: dict[str, Flow[..., None]] = {f.name: f for f in (convert, pseudolabel, train, segment, evaluate)}


@flow(name="project", flow_run_name="project {project_file.parent.name}", retries=0)
def project(project_file: Path, settings: Overrides | None = None, redo: list[Stage] | None = None) -> None:
    """Do whatever a project file declares and is not done yet, one stage after another.

    Args:
        project_file: The project's TOML file.
        settings: Sections to use in place of the project file's.
        redo: Stages whose stale results are built anew; the old ones stay until the new are complete.
    """
    stages = refuse_stale(project_file, settings, redo or [])
    with of_stages():
        for name, stage in FLOWS.items():
            if name in stages:
                stage(project_file, settings=settings, redo=stages[name])
        final_summary("project", project_file, settings)
