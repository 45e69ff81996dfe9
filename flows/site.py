"""What differs from site to site, and what is the same at all of them: the two files that `make deploy` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from prefect.client.schemas.schedules import CronSchedule
from pydantic import AfterValidator, Field

from neurovol.errors import UserError
from neurovol.fields import Name, Section
from neurovol.projectfile import load_yaml

DEPLOY = Path(__file__).parents[1] / "deploy"
HEARTBEAT_S = 30  # the shortest that Prefect allows


def _cron(text: str) -> str:
    try:
        CronSchedule(cron=text)
    except ValueError:
        raise ValueError("is no cron schedule; write five fields, as */15 * * * *") from None
    return text


class Site(Section):
    """A site file."""

    pool: Name = Field("neurovol", description="The work pool")
    file_system: Name = Field("local", description="Names the limit of conversions")
    conversions: int = Field(1, ge=1, description="Conversions at once on that file system")
    gpu_partition: Name = Field("local", description="Names the limit of trainings")
    trainings: int = Field(1, ge=1, description="Trainings at once in that partition")
    inbox_cron: Annotated[str, AfterValidator(_cron)] = Field(
        "*/15 * * * *", description="When the inbox is looked into"
    )
    stage_retry_delay_s: int = Field(60, ge=0, description="Seconds before a failed stage is tried once more")
    never_began_h: int = Field(
        48, ge=1, description="Hours after which a run that was submitted, and never began, is taken for lost"
    )
    job_variables: dict[str, Any] = Field({}, description="Of every deployment")
    deployments: dict[str, dict[str, Any]] = Field({}, description="Further job variables, by flow")

    @property
    def limits(self) -> dict[str, int]:
        """The limits of the server, by name."""
        return {
            f"conversions@{self.file_system}": self.conversions,
            f"trainings@{self.gpu_partition}": self.trainings,
        }

    def variables(self, flow: str, stage_retries: int) -> dict[str, Any]:
        """A flow's job variables: what every run needs, then the site's, then the site's for this flow."""
        conversions, trainings = self.limits
        env = {
            "NEUROVOL_CONVERSION_LIMIT": conversions,
            "NEUROVOL_TRAINING_LIMIT": trainings,
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_S),
            "PREFECT_FLOWS_DEFAULT_RETRIES": str(stage_retries),
            "PREFECT_FLOWS_DEFAULT_RETRY_DELAY_SECONDS": str(self.stage_retry_delay_s),
        }
        own = self.deployments.get(flow, {})
        return self.job_variables | own | {"env": env | self.job_variables.get("env", {}) | own.get("env", {})}


class Deployment(Section):
    """One of prefect.yaml's deployments."""

    entrypoint: str
    tags: tuple[str, ...] = ()
    schedule: str | None = None
    stage_retries: int = Field(0, ge=0)

    @property
    def flow(self) -> str:
        return self.entrypoint.rpartition(".")[2]


class Manifest(Section):
    """prefect.yaml."""

    name: str
    deployments: tuple[Deployment, ...]


def read_site(file: Path) -> Site:
    """A site file, checked; a UserError names file, field, value and rule."""
    there = ", ".join(sorted(str(p) for p in (DEPLOY / "sites").glob("*.yaml")))
    site = load_yaml(Site, file, f"site files are {there}")
    known = {deployment.flow for deployment in read_manifest().deployments}
    for flow in site.deployments:
        if flow not in known:
            raise UserError(f"{file}: deployments.{flow}: there is no such flow; flows are {', '.join(sorted(known))}")
    return site


def read_manifest() -> Manifest:
    return load_yaml(Manifest, DEPLOY / "prefect.yaml", "take it from neurovol's own sources")
