"""Flow inbox: start what arrived completely, once a sample."""

from __future__ import annotations

from pathlib import Path

from prefect import flow, get_run_logger, tags
from prefect.artifacts import create_table_artifact
from prefect.client.orchestration import get_client
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound

from flows.artifacts import artifact_key
from flows.attempts import FLOW, MOST_ATTEMPTS, is_under_way, next_attempt, states_of, tag
from flows.sample import sample
from neurovol.project import Project, open_project
from neurovol.stages.arrivals import Arrival, look
from neurovol.stages.inbox import inbox_folder, inbox_of, is_being_written, standing

DONE = "done"


@flow(name="inbox", flow_run_name="inbox {project_file.parent.name}", retries=0)
def inbox(project_file: Path) -> None:
    """Look into the drop folder, and start the flow `sample` for every sample that arrived completely and is not done.

    A sample still being copied is left alone; one that failed is tried three times in all.

    Args:
        project_file: The project's TOML file; its [inbox] names folder, model and what is said of a new sample.
    """
    project = open_project(project_file)
    found = look(inbox_folder(project), inbox_of(project), [s.name for s in project.settings.samples])
    said = {name: f"left alone: {why}" for name, why in found.waiting.items()}
    said |= {arrival.path.name: _handled(project, arrival) for arrival in found.complete}
    done = sum(what == DONE for what in said.values())
    logger = get_run_logger()
    for name, what in said.items():
        if what != DONE:
            logger.info("%s: %s", name, what)
    logger.info("%d of %d samples in %s are done", done, len(said), inbox_folder(project))
    create_table_artifact(
        [{"arrived": name, "what of it": what} for name, what in sorted(said.items()) if what != DONE],
        key=artifact_key(f"inbox {project.settings.name}"),
        description=f"What lies in {inbox_folder(project)} and is not done; {done} more are",
    )


def _handled(project: Project, arrival: Arrival) -> str:
    """Start a sample if it wants that; what of it, in words."""
    stands = standing(project, arrival)
    if stands.kind == "done":
        return DONE
    if stands.kind == "stale":
        way_out = f"rename it to have it as a new sample, or run `sample` for {arrival.name} with redo"
        return f"left alone: it changed after it was done; {way_out}. {stands.why}"
    if is_under_way(project.file, arrival.name):
        return "is being done"
    if is_being_written(project, arrival):
        return "is being done, by a run that the server has lost sight of, or without one"
    attempt = next_attempt(states_of(stands.key))
    if isinstance(attempt, str):
        return attempt
    _start(project, arrival.name, stands.key, attempt)
    unread = f", though it cannot be read: {stands.why}" if stands.why else ""
    return f"started, attempt {attempt} of {MOST_ATTEMPTS}{unread}"


def _start(project: Project, name: str, key: str, attempt: int) -> None:
    """Start the flow `sample`: its deployment where there is one, here and now otherwise.

    Of two inboxes that start the same attempt at once, the server makes one run.
    """
    deployed = f"{FLOW}/{project.settings.name}"
    if _exists(deployed):
        run_deployment(
            deployed,
            parameters={"project_file": str(project.file), "sample": name},
            timeout=0,
            tags=[tag(key)],
            idempotency_key=f"{key}#{attempt}",
            as_subflow=False,
        )
        return
    with tags(tag(key)):
        sample(project.file, name, return_state=True)


def _exists(deployment: str) -> bool:
    with get_client(sync_client=True) as client:
        try:
            client.read_deployment_by_name(deployment)
        except ObjectNotFound:
            return False
    return True
