"""All checks in the order in which one builds on another, each bounded in time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from neurovol.clustersettings import ClusterSettings
from neurovol.doctor.api import Api, prefect_settings
from neurovol.doctor.finding import Finding, examined
from neurovol.doctor.inbox import check_arrivals, check_folder, check_model
from neurovol.doctor.project import check_sources, check_start, opened
from neurovol.doctor.server import check_pools, check_scheduler, check_server
from neurovol.doctor.slurm import check_commands, check_slurm
from neurovol.doctor.store import check_room, check_store
from neurovol.doctor.versions import check_compiled, check_packages, check_python
from neurovol.doctor.workers import check_workers, clusters
from neurovol.project import Project
from neurovol.stages.order import actions
from neurovol.stages.steps import Steps

QUICK_S = 120.0  # for a check on this machine or of a server
SOURCES_S = 900.0  # a folder may hold a hundred thousand files
WAIT_S = 120.0  # for workers to come
PROBE_S = 300.0  # for workers that came to answer, and to go

Say = Callable[[str], object]


def silently(_: str) -> None:
    """Says nothing."""


def examine(
    file: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    workers: bool = True,
    wait_s: float = WAIT_S,
    say: Say = silently,
) -> Iterator[Finding]:
    """Everything that can be seen before a run, of a project if its file is given, a finding at a time.

    `workers` have to come within `wait_s`; they are not started where it is False. What takes long is said before.
    """
    yield from examined("python", QUICK_S, check_python)
    opening: list[Steps] = []
    if file is not None:
        yield from examined("project", SOURCES_S, partial(_open, file, overrides or {}, opening))
    queued = bool(opening) and opening[0].project.settings.cluster.queued
    yield from examined("packages", QUICK_S, partial(check_packages, ["hpc"] if queued else []))
    yield from examined("compiled", QUICK_S, check_compiled)
    yield from _of_server()
    for steps in opening:
        yield from _of_project(steps)
        yield from _of_cluster(steps, workers, wait_s, say)


def _open(file: Path, overrides: Mapping[str, Any], opening: list[Steps]) -> Iterator[Finding]:
    steps = opened(file, overrides)
    opening.append(steps)
    yield Finding("ok", "project", f'{file} is in order: "{steps.project.settings.name}"')


def _of_server() -> Iterator[Finding]:
    settings = prefect_settings()
    if not settings.get("PREFECT_API_URL"):
        text = "PREFECT_API_URL is not set: a flow starts a server of its own, and nothing is scheduled"
        yield Finding("skipped", "server", text)
        return
    found = examined("server", QUICK_S, partial(check_server, settings))
    yield from found
    if any(one.level == "fail" and one.name == "server" for one in found):
        return
    api = Api(settings["PREFECT_API_URL"], settings)
    yield from examined("scheduler", QUICK_S, partial(check_scheduler, api))
    yield from examined("work pool", QUICK_S, partial(check_pools, api))


def _of_project(steps: Steps) -> Iterator[Finding]:
    folder, declared = steps.project.folder, bool(steps.project.settings.samples)
    sources = examined("sources", SOURCES_S, partial(check_sources, steps))
    yield from sources
    yield from examined("store", QUICK_S, partial(check_store, folder))
    to_come: list[Steps] = []
    inbox = list(_of_inbox(steps.project, to_come))
    yield from inbox
    if any(one.level == "fail" for one in sources):
        yield Finding("skipped", "run", "sources have to be opened first")
        return
    run = examined("run", SOURCES_S, partial(check_start, steps))
    yield from run
    if not declared and not to_come and any(one.level == "fail" for one in inbox):
        yield Finding("skipped", "room", "the inbox has to be in order first")
        return
    every = [steps, *to_come] if declared else to_come
    room = examined("room", SOURCES_S, partial(_check_room, folder, every))
    refused = any(one.text == other.text for one in room for other in run)  # what cannot run cannot be planned
    yield from [Finding("skipped", "room", "there is no plan of a run that is refused")] if refused else room


def _of_inbox(project: Project, to_come: list[Steps]) -> Iterator[Finding]:
    if project.settings.inbox is None:
        return
    folder = examined("inbox", SOURCES_S, partial(check_folder, project))
    model = examined("inbox", QUICK_S, partial(check_model, project))
    yield from (*folder, *model)
    if not folder and not model:
        yield from examined("inbox", SOURCES_S, partial(check_arrivals, project, to_come))


def _check_room(folder: Path, every: list[Steps]) -> Iterator[Finding]:
    return check_room(folder, (plan for steps in every for action in actions(steps) for plan in action.plan()))


def _of_cluster(steps: Steps, workers: bool, wait_s: float, say: Say) -> Iterator[Finding]:
    settings, folder = steps.project.settings.cluster, steps.project.folder
    queue = list(_of_queue(settings)) if settings.queued else []
    yield from queue
    for name, asked in clusters(settings).items():
        if not workers:
            yield Finding("skipped", name, "left out by --no-workers")
        elif any(one.level == "fail" for one in queue):
            yield Finding("skipped", name, "the queue would not take their jobs")
        else:
            if asked.queued:
                say(f"{name}: jobs are asked for, which may wait in the queue; given up after {wait_s:.0f} s (--wait)")
            yield from examined(name, wait_s + PROBE_S, partial(check_workers, name, asked, folder, wait_s))


def _of_queue(settings: ClusterSettings) -> Iterator[Finding]:
    commands = examined(settings.kind, QUICK_S, partial(check_commands, settings))
    yield from commands
    if settings.kind != "slurm" or any(one.level == "fail" for one in commands):
        return
    yield from examined("slurm", QUICK_S, partial(check_slurm, settings.job))
    if settings.gpu_job is not None:
        yield from examined("slurm", QUICK_S, partial(check_slurm, settings.gpu_job, "cluster.gpu_job"))
