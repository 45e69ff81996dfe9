"""What every stage's flow does: log its plan, do what is not done yet while watched, end with its picture."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from prefect import get_run_logger, runtime, tags

from flows.artifacts import Artifacts
from flows.leaving import leaving
from flows.limits import slot
from flows.watch import Watch
from neurovol.project import open_project, state_of
from neurovol.settings import Overrides
from neurovol.stages.inbox import steps_with
from neurovol.stages.order import Stage, actions, chosen, perform_all, to_redo
from neurovol.stages.plan import text_of
from neurovol.stages.report import report_project
from neurovol.stages.steps import Steps
from neurovol.stages.summary import report_link, summary, table

TAG, PART_TAG = "neurovol", "neurovol-stage"  # of runs of a deployment, and of the stages within one


@contextmanager
def of_stages() -> Iterator[None]:
    """Within a deployment's run its stages carry a tag as well, by which automations go; and it says when it leaves."""
    with leaving(), tags(*([PART_TAG] if TAG in (runtime.flow_run.tags or ()) else [])):
        yield


def opened(project_file: Path, settings: Overrides | None, sample: str | None = None) -> Steps:
    """The steps of a project file with a run form's sections laid over it, or those of one sample of its inbox."""
    return steps_with(open_project(project_file, settings.tables if settings else {}), sample)


def run_stages(
    title: str,
    stages: tuple[str, ...],
    project_file: Path,
    sample: str | None,
    redo: bool,
    settings: Overrides | None,
) -> None:
    """Do the steps of some stages that are not done yet, watched; stale ones anew if `redo`."""
    steps = opened(project_file, settings, sample)
    todo = chosen(actions(steps), stages, sample)
    again = to_redo(todo, stages if redo else ())
    with leaving(), Artifacts() as artifacts:
        watch = Watch(artifacts)
        watch.logger.info("Plan\n%s", text_of(plan for action in todo for plan in action.plan()))
        works = again or any(state_of(action.step).kind != "done" for action in todo)
        try:
            with slot(stages[0]) if works else nullcontext():
                perform_all(steps, todo, again, watch.report, watch.begin)
        finally:
            _show_table(artifacts, steps)
        page = summary(steps, title, [a.step for a in todo])
        artifacts.show("markdown", f"{title} {sample or steps.project.settings.name}", page, f"{title}: what was done")


def _show_table(artifacts: Artifacts, steps: Steps) -> None:
    """All steps of the project, also where one of them failed."""
    name = steps.project.settings.name
    rows = json.dumps(table([a.step for a in actions(steps)]), ensure_ascii=False)
    artifacts.show("table", f"steps {name}", rows, f"{name}: all of its steps")


def refuse_stale(project_file: Path, settings: Overrides | None, redo: list[Stage]) -> dict[str, bool]:
    """The stages that the project has, each with whether it is to be redone; an error where results are stale.

    Logs the plan of the whole project.
    """
    steps = opened(project_file, settings)
    every = actions(steps)
    again = to_redo(every, redo)
    plan = text_of(plan for action in every if action.step.name not in again for plan in action.plan())
    get_run_logger().info("Plan\n%s", plan + "".join(f"\n{name}: to be built anew" for name in sorted(again)))
    stages = {a.step.stage: False for a in every}
    return stages | {a.step.stage: True for a in every if a.step.name in again}


def final_summary(title: str, project_file: Path, settings: Overrides | None, sample: str | None = None) -> None:
    """Write the report, and leave a table of all steps with the project's pictures."""
    steps = opened(project_file, settings, sample)
    every = [a.step for a in actions(steps)]
    report_project(steps, every)
    get_run_logger().info("Report: %s", steps.project.report)
    name = steps.project.settings.name
    with Artifacts() as artifacts:
        _show_table(artifacts, steps)
        artifacts.show("markdown", f"report {name}", report_link(steps), f"{name}: its report")
        page = summary(steps, f"{title}: {name}", every)
        artifacts.show("markdown", f"{title} {name}", page, f"{title}: what ran, the figures, the pictures")
