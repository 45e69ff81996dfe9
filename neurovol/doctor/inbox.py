"""Whether what arrives in the inbox would be done: its folder, its model, and each thing that lies there already."""

from __future__ import annotations

import os
from collections.abc import Iterator

from neurovol.doctor.finding import Finding
from neurovol.doctor.project import refuse
from neurovol.errors import UserError
from neurovol.networks.checkpoint import Checkpoint, check_matches, load_checkpoint
from neurovol.project import Project, state_of
from neurovol.stages.arrivals import arrivals
from neurovol.stages.inbox import inbox_folder, inbox_of, inbox_steps, pinned_model
from neurovol.stages.order import actions, to_redo
from neurovol.stages.steps import Steps

READING = "give the right to read it, and of folders the right to look into them (chmod a+rX)"


def check_folder(project: Project) -> Iterator[Finding]:
    """Whether the drop folder can be listed and looked into; nothing where it can."""
    folder = inbox_folder(project)
    try:
        arrivals(folder, inbox_of(project).marker)
    except PermissionError as error:
        yield _unreadable(error)


def check_model(project: Project) -> Iterator[Finding]:
    """Whether the pinned model can be loaded; nothing where it can. A UserError or Failure says what is wrong."""
    try:
        load_checkpoint(pinned_model(project), "unet3d")
    except PermissionError as error:
        yield _unreadable(error)


def check_arrivals(project: Project, to_come: list[Steps]) -> Iterator[Finding]:
    """What lies in the inbox, a line for each thing that would not be done, and one of all the others.

    Steps of samples that would be done are put into `to_come`.
    """
    try:
        found = inbox_steps(project)
    except PermissionError as error:  # the flow ends on it as well, whatever else lies there
        yield _unreadable(error)
        return
    model, done = load_checkpoint(pinned_model(project), "unet3d"), 0
    for name, steps in found.items():
        if isinstance(steps, str):
            yield Finding("warn", "inbox", f"{name} can be no sample: {steps}")
        elif all(state_of(action.step).kind == "done" for action in actions(steps)):
            done += 1
        elif (finding := _refusal(name, steps, model)) is not None:
            yield finding
        else:
            to_come.append(steps)
    text = f"{inbox_folder(project)}: {len(to_come)} samples to be done, {done} done; model {model.folder}"
    yield Finding("ok", "inbox", text)


def _refusal(name: str, steps: Steps, model: Checkpoint) -> Finding | None:
    """Why a sample would not be done, if so: left alone as it is stale, or refused when its run starts or predicts."""
    try:
        to_redo(actions(steps), ())
    except UserError as error:
        return Finding("warn", "inbox", f"{name} is left alone: {error}")
    try:
        refuse(steps)
        for view in steps.samples.values():
            check_matches(model, view.voxel_size_um, len(view.channels))
    except UserError as error:
        return Finding("fail", "inbox", f"{name}: {error}")
    return None


def _unreadable(error: PermissionError) -> Finding:
    return Finding("fail", "inbox", f"{error.filename}: user {os.getuid()} cannot read it: {error.strerror}", READING)
