"""Settings of where blocks are computed: workers on this machine, jobs of a queue, or a scheduler that runs already."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from neurovol.fields import Section, Walltime


class JobSettings(Section):
    """What one worker asks of a queue: each is a job of its own."""

    partition: str | None = Field(None, description="Partition or queue; default the site's")
    account: str | None = Field(None, description="Account or project that is charged; default the user's own")
    walltime: Walltime = Field("04:00:00", description="How long a job may run, HH:MM:SS or D-HH:MM:SS")
    cores: int = Field(4, ge=1, description="Cores of a job")
    memory_gb: float = Field(16.0, gt=0.5, description="Memory of a job, 10^9 bytes; a worker beyond it is killed")
    gpus: Literal[0, 1] = Field(0, description="GPUs of a job: a worker has one at most")
    interface: str | None = Field(
        None, description="Network interface between driver and jobs, as ib0; default where the driver's name points"
    )
    scratch: str | None = Field(None, description="Folder of a node for what workers put aside, as $TMPDIR")
    directives: tuple[str, ...] = Field((), description='More options for the queue, as "--qos=night"')
    setup: tuple[str, ...] = Field((), description='Shell lines before a worker starts, as "module load cuda"')


class ClusterSettings(Section):
    """Where blocks are computed."""

    kind: Literal["local", "slurm", "pbs", "lsf", "sge", "address"] = Field(
        "local",
        description="Start workers on this machine, as jobs of a queue, or use a running scheduler; pbs, lsf and sge "
        "are untested",
    )
    address: str | None = Field(None, description='The scheduler\'s address, for kind "address"')
    unencrypted: bool = Field(
        False, description="Allow an address on another machine without TLS, where whoever reaches it runs code as you"
    )
    scheduler: Literal["inside", "process"] | None = Field(
        None,
        description="Where Dask's scheduler runs: inside the driver, or as a process of its own, which dies with it; "
        "default inside for local workers, a process for jobs",
    )
    workers: int | None = Field(
        None, ge=1, description="Worker processes; default one per two cores, at most 4; of a queue so many jobs"
    )
    threads: int | None = Field(
        None,
        ge=1,
        description="Threads that a worker's arithmetic uses; default the cores shared among the workers, of a queue "
        "the job's",
    )
    gpus: int | None = Field(
        None,
        ge=0,
        description="GPUs of this machine to predict on, each with a worker of its own, or shared by as many as "
        "`workers` says; default all that torch sees. Of a queue: see job and gpu_job",
    )
    retries: int = Field(2, ge=0, description="Further attempts at a block that fails, before it is quarantined")
    allowed_bytes: int | None = Field(
        None,
        ge=500_000_000,
        description="Memory of predictions, all their workers together; default half of this machine's, of a queue "
        "three quarters of the jobs'. Windows are chosen by it, and refused beyond it; a conversion has its own, "
        "convert.allowed_bytes",
    )
    job: JobSettings = Field(JobSettings(), description="What a job of a queue asks for")
    gpu_job: JobSettings | None = Field(
        None, description="What a job asks for where networks predict; default as `job`"
    )

    @model_validator(mode="after")
    def _address_where_needed(self) -> ClusterSettings:
        if self.gpus is not None and self.kind != "local":
            raise ValueError('`gpus` goes with kind = "local"; jobs have theirs by job.gpus and gpu_job.gpus')
        if (self.kind == "address") != (self.address is not None):
            raise ValueError('`address` goes with kind = "address", and only with it')
        if self.address is not None and not self.unencrypted and _is_open(self.address):
            raise ValueError(
                f"{self.address} is on another machine and not encrypted, so whoever reaches it can run code as you; "
                "use tls:// (certificates by Dask's own configuration), or allow it by unencrypted = true"
            )
        return self

    @property
    def predicting(self) -> ClusterSettings:
        """The same for where networks predict."""
        return self if self.gpu_job is None else self.model_copy(update={"job": self.gpu_job, "gpu_job": None})

    @property
    def queued(self) -> bool:
        """Whether workers are jobs of a queue."""
        return self.kind in ("slurm", "pbs", "lsf", "sge")


def _is_open(address: str) -> bool:
    """Whether a scheduler's address leaves this machine in the clear.

    >>> _is_open("tcp://10.0.0.1:8786"), _is_open("tls://10.0.0.1:8786"), _is_open("tcp://127.0.0.1:8786")
    (True, False, False)
    """
    protocol, _, place = address.rpartition("://")
    return protocol != "tls" and not place.startswith(("127.", "localhost", "[::1]"))
