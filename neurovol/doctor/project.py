"""Whether a project file is in order, and a run of it would start."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from neurovol.doctor.finding import Finding
from neurovol.project import open_project, state_of
from neurovol.stages.order import Action, actions, check_all, cluster_for, refuse_nothing_to_learn, to_redo
from neurovol.stages.steps import Steps


def opened(file: Path, overrides: Mapping[str, Any]) -> Steps:
    """The steps of a project file; a UserError where it is wrong."""
    return Steps(open_project(file, dict(overrides)))


def check_sources(steps: Steps) -> Iterator[Finding]:
    """Whether all that the project file names is there and can be opened; a UserError says what is not."""
    if not steps.project.settings.samples:
        yield Finding("skipped", "sources", "no sample is declared: all arrive in the inbox")
        return
    voxels = sum(view.source.shape[1] * view.source.shape[2] * view.source.shape[3] for view in steps.samples.values())
    annotated = sum(len(view.annotations) for view in steps.samples.values())
    text = f"{len(steps.samples)} samples of {voxels:,} voxels in all, {annotated} of them with annotations of a role"
    yield Finding("ok", "sources", text)


def check_start(steps: Steps) -> Iterator[Finding]:
    """Whether `neurovol run` would start: nothing is stale, windows fit in memory, a model is there or to be trained.

    A UserError says why not.
    """
    if not steps.project.settings.samples:
        yield Finding("skipped", "run", "no sample is declared: each that arrives in the inbox has a run of its own")
        return
    refuse_nothing_to_learn(steps, "run")
    yield Finding("ok", "run", f"would start: {_states(refuse(steps))}")


def refuse(steps: Steps) -> list[Action]:
    """All actions; a UserError where a run of them would be refused at its start."""
    every = actions(steps)
    to_redo(every, ())
    check_all(every, set())
    for stage in {action.step.stage for action in every if state_of(action.step).kind != "done"}:
        cluster_for(steps, stage)
    return every


def _states(every: list[Action]) -> str:
    """How many steps are how far, for people."""
    counts = Counter(state_of(action.step).kind for action in every)
    return f"of {len(every)} steps " + ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
