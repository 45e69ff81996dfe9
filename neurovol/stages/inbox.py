"""A sample of the inbox as a project of its own: its steps, and how far stores and ledgers say they are."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neurovol.blockwise.ledger import fingerprint, is_written
from neurovol.errors import UserError
from neurovol.project import Project, State, stale_text, state_of
from neurovol.samplesettings import InboxSettings
from neurovol.settings import ProjectSettings
from neurovol.stages.arrivals import Arrival, arrivals, misnamed
from neurovol.stages.order import Action, actions
from neurovol.stages.steps import Steps


@dataclass(frozen=True)
class Arrived(Project):
    """A project whose one sample arrived in the inbox; it lies in the project's store, with a report of its own."""

    name: str

    @property
    def report(self) -> Path:
        return self.sample_folder(self.name) / "report.html"

    @property
    def report_ledger(self) -> Path:
        return self.ledger(self.name, "report")


def inbox_of(project: Project) -> InboxSettings:
    """The project's [inbox]; a UserError where it has none."""
    if project.settings.inbox is None:
        raise UserError(
            f"{project.file}: has no [inbox]; give one with `folder`, where samples arrive, and `model`, a trained one"
        )
    return project.settings.inbox


def inbox_folder(project: Project) -> Path:
    return project.root / inbox_of(project).folder


def pinned_model(project: Project) -> Path:
    """The folder of the model that samples of the inbox are segmented with; a UserError where it is no model."""
    named = inbox_of(project).model
    places = [project.folder / "models" / named, project.root / named]
    for place in places:
        if (place / "checkpoint.json").is_file():
            return place
    known = sorted(p.parent.name for p in (project.folder / "models").glob("*/checkpoint.json"))
    raise UserError(
        f"{project.file}: inbox.model = {str(named)!r}: no finished model at {' or '.join(map(str, places))}; "
        f"train one by `neurovol run`, or name one of {', '.join(known) or 'none: there is none yet'}"
    )


def arrived(project: Project, arrival: Arrival) -> Arrived:
    """The project that does an arrival: its settings, but for the one sample and the pinned model."""
    settings, inbox = project.settings, inbox_of(project)
    table: dict[str, Any] = settings.model_dump(mode="json", exclude_none=True, exclude={"annotations", "inbox"})
    sample = {"name": arrival.name, "source": [str(arrival.path.absolute())]}
    table["samples"] = [sample | inbox.sample.model_dump(mode="json", exclude_none=True)]
    table["segment"] |= {"checkpoint": str(pinned_model(project)), "samples": None}
    table["pseudolabel"]["boxes"] = []
    return Arrived(project.file, ProjectSettings.model_validate(table), arrival.name)


def steps_with(project: Project, sample: str | None) -> Steps:
    """The steps of a project; of its inbox's sample where the one that is named is not declared.

    Raises UserError where there is no such sample at all.
    """
    if sample is None or sample in {s.name for s in project.settings.samples}:
        return Steps(project)
    if project.settings.inbox is None:
        project.settings.sample(sample)
    found = [a for a in arrivals(inbox_folder(project), inbox_of(project).marker) if a.name == sample]
    if len(found) != 1:
        lying = f"{len(found)} files or folders" if found else "nothing"
        raise UserError(
            f'there is no sample "{sample}": the project does not declare it, and {lying} of that name lie in its '
            f"inbox {inbox_folder(project)}; see there what samples are called"
        )
    return Steps(arrived(project, found[0]))


def inbox_steps(project: Project) -> dict[str, Steps | str]:
    """Of all that lies in the inbox, complete or not, by file or folder: its steps, or why it has none.

    Empty where the project has no inbox; raises UserError where its folder cannot be read.
    """
    if project.settings.inbox is None:
        return {}
    found = arrivals(inbox_folder(project), project.settings.inbox.marker)
    wrong = misnamed(found, {sample.name for sample in project.settings.samples})
    return {a.path.name: wrong.get(a.path.name) or a.closed or _steps_or_why(project, a) for a in found}


def _steps_or_why(project: Project, arrival: Arrival) -> Steps | str:
    try:
        steps = Steps(arrived(project, arrival))
        actions(steps)  # what cannot be read is found by its fingerprints
    except (UserError, PermissionError) as error:
        return str(error)
    return steps


@dataclass(frozen=True)
class Standing:
    """How far an arrival is: "done", "stale" with what changed, "unreadable" with why, or else "to do"."""

    kind: str
    key: str  # of what is to be done with it: store, the source's content, the model, and settings that matter
    why: str = ""


def is_being_written(project: Project, arrival: Arrival) -> bool:
    """Whether any step of an arrival is being done just now, whatever a server says of its run.

    A run that waits for a slot of a limit, or has workers start for its first block, writes no ledger.
    """
    ledgers = project.sample_folder(arrival.name) / "ledgers"
    return any(is_written(file) for file in ledgers.glob("*.jsonl*") if file.is_file())  # beside folders of markers


def standing(project: Project, arrival: Arrival) -> Standing:
    """What stores and ledgers say of an arrival."""
    model = pinned_model(project)
    try:
        steps = Steps(arrived(project, arrival))
        every = actions(steps)
        key = _key(project, arrival, steps.segment(arrival.name).fingerprint)
    except (UserError, PermissionError) as error:  # no source at all; its run will say so where people look
        return Standing("unreadable", _key(project, arrival, _digest(arrival, model)), str(error))
    states = [(action, state_of(action.step)) for action in every]
    if any(state.kind == "stale" for action, state in states if action.step.stage != "report"):
        return Standing("stale", key, _stale(states))
    done = all(state.kind == "done" for _, state in states) and steps.project.report.is_file()
    return Standing("done" if done else "to do", key)


def _stale(states: list[tuple[Action, State]]) -> str:
    return stale_text([(a.step, s) for a, s in states if s.kind == "stale" and a.step.stage != "report"])


def _key(project: Project, arrival: Arrival, identity: str) -> str:
    """Says where results go as well: projects of one server may share a drop folder, and one name in two stores."""
    digest = fingerprint([str(project.folder.resolve()), identity])
    return f"{project.settings.name}/{arrival.name}@{digest}"


def _digest(arrival: Arrival, model: Path) -> str:
    """Stands for an identity where the source cannot be opened: the files as they lie there, and the model."""
    return hashlib.sha256(json.dumps([arrival.files, model.name]).encode()).hexdigest()
