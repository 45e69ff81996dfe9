"""Deployments, work pool and limits on the server, made as the files say; what is there and right is left alone."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolCreate
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectNotFound
from prefect.flows import Flow
from prefect.types.entrypoint import EntrypointType
from prefect.utilities.asyncutils import run_coro_as_sync
from prefect.utilities.callables import parameter_schema
from prefect.workers.utilities import get_default_base_job_template_for_infrastructure_type

import neurovol
from flows.site import Deployment, Site, read_manifest
from flows.stage import TAG
from neurovol.errors import UserError
from neurovol.project import Project

POOL_TYPE = "process"


def make_pool(client: SyncPrefectClient, name: str) -> str:
    """The work pool; a UserError where one of that name is of another type."""
    try:
        found = client.read_work_pool(name)
    except ObjectNotFound:
        template = run_coro_as_sync(get_default_base_job_template_for_infrastructure_type(POOL_TYPE))
        client.create_work_pool(WorkPoolCreate(name=name, type=POOL_TYPE, base_job_template=template or {}))
        return f"work pool {name}: made"
    if found.type != POOL_TYPE:
        raise UserError(
            f'the work pool "{name}" is of type {found.type}, and flows run in one of type {POOL_TYPE}; '
            f"give another name as `pool` in the site file"
        )
    return f"work pool {name}: is there"


def make_limits(client: SyncPrefectClient, limits: dict[str, int]) -> Iterator[str]:
    """Limits of the whole server; slots that are taken stay taken."""
    for name, limit in limits.items():
        client.upsert_global_concurrency_limit_by_name(name, limit)
        yield f"limit {name}: {limit}"


def make_deployments(client: SyncPrefectClient, project: Project, site: Site) -> Iterator[str]:
    """A deployment of each flow, for this project; one that is right is left alone, with the runs of its schedule."""
    for wanted in read_manifest().deployments:
        deployment, schema = _deployment(project, site, wanted)
        name = f"{wanted.flow}/{deployment.name}"
        found = _found(client, name)
        if found is not None and _is_right(found, deployment, schema):
            yield f"deployment {name}: is there"
            continue
        deployment.apply()
        yield f"deployment {name}: {'made' if found is None else 'brought up to date'}"


def _found(client: SyncPrefectClient, name: str) -> DeploymentResponse | None:
    try:
        return client.read_deployment_by_name(name)
    except ObjectNotFound:
        return None


def _is_right(found: DeploymentResponse, wanted: RunnerDeployment, schema: dict[str, Any]) -> bool:
    """Whether a deployment is as wanted; a schedule that a person paused is."""
    same = all(
        getattr(found, name) == getattr(wanted, name)
        for name in ("entrypoint", "parameters", "tags", "version", "description", "work_pool_name", "job_variables")
    )
    schedules = [s.schedule for s in found.schedules] == [s.schedule for s in wanted.schedules or ()]
    return same and schedules and found.parameter_openapi_schema == schema


def _deployment(project: Project, site: Site, wanted: Deployment) -> tuple[RunnerDeployment, dict[str, Any]]:
    """A deployment as it is to be, and the form of its parameters."""
    module, _, name = wanted.entrypoint.rpartition(".")
    flow: Flow[..., Any] = getattr(import_module(module), name)
    scheduled = wanted.schedule == "inbox" and project.settings.inbox is not None
    deployment = flow.to_deployment(
        project.settings.name,
        parameters={"project_file": str(project.file)},
        tags=[TAG, *wanted.tags],
        version=neurovol.__version__,
        work_pool_name=site.pool,
        job_variables=site.variables(wanted.flow, wanted.stage_retries),
        entrypoint_type=EntrypointType.MODULE_PATH,
        schedules=[_schedule(site)] if scheduled else [],
    )
    assert isinstance(deployment, RunnerDeployment)  # Prefect returns a coroutine where a loop runs; none does here
    return deployment, parameter_schema(flow).model_dump(exclude_unset=True)


def _schedule(site: Site) -> DeploymentScheduleCreate:
    """The inbox's; told from others by its slug, so that one that a person paused stays paused."""
    return DeploymentScheduleCreate(schedule=CronSchedule(cron=site.inbox_cron, timezone="UTC"), slug="inbox")
