"""Workers as jobs of a queue: what a job asks for, its certificates, and how many there are kept going."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from distributed import Client, Security
from distributed.core import Status

from neurovol.blockwise.lifetime import UNTIL
from neurovol.blockwise.reach import Roll
from neurovol.blockwise.scheduler import OwnScheduler, not_waiting_for_the_dead
from neurovol.clustersettings import ClusterSettings, JobSettings
from neurovol.errors import UserError
from neurovol.fields import walltime_s

log = logging.getLogger(__name__)

CLASSES = {"slurm": "SLURMCluster", "pbs": "PBSCluster", "lsf": "LSFCluster", "sge": "SGECluster"}
DEATH_TIMEOUT_S = 60  # after which a job ends that finds no scheduler: its driver was killed
# A job on a node whose GPU is broken would fail one block after the other, quicker than others do them.
NEEDS_GPU = ['nvidia-smi -L >&2 || { echo "no GPU is visible on $(hostname)" >&2; exit 1; }']
ROLES = ("scheduler", "worker", "client")
LOOK_S = 5.0  # between looks at the queue
SAY_S = 60.0
MOST_STILLBORN = 3  # jobs for each wanted one that may end before any worker has joined
MOST_REFUSED = 8  # jobs for each wanted one that may be refused: over a quarter of an hour, as a queue may be away
MOST_LOOK_S = 300.0, 60.0  # between looks at most, where jobs end or are refused: while no worker is there, or one is


@contextmanager
def open_jobs(
    settings: ClusterSettings,
    folder: Path,
    name: str,
    threads: int,
    environment: Mapping[str, str],
    config: Mapping[str, Any],
) -> Iterator[Client]:
    """A client whose workers are jobs called `name`, as many as settings.workers, replaced when they are lost.

    `folder` is on a disk that jobs see: for their logs, and for the keys of this run. `environment` is for workers,
    `config` is Dask's for them and its scheduler. All is encrypted. Raises UserError where the queue
    refuses such a job, Failure where jobs end before any has joined.
    """
    count = settings.workers or 1
    with _keys(folder) as keys:
        cluster = _cluster(settings, folder, keys, name, threads, environment, config)
        with cluster, not_waiting_for_the_dead(cluster), Client(cluster) as client:
            _refuse_bad_job(settings.kind, cluster.job_script())
            keeper = _Keeper(cluster, settings.kind, count, folder / "logs")
            try:
                keeper.start(client, settings.job.partition)
                yield client
            finally:
                keeper.stop()


def _cluster(
    settings: ClusterSettings,
    folder: Path,
    keys: Path,
    name: str,
    threads: int,
    environment: Mapping[str, str],
    config: Mapping[str, Any],
) -> Any:
    try:
        module = import_module("dask_jobqueue")
        import_module("cryptography")
    except ImportError as error:
        raise UserError(f'cluster.kind = "{settings.kind}" needs {error.name}: pip install "neurovol[hpc]"') from None
    logs = folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    scheduler: dict[str, Any] = {"dashboard_address": "127.0.0.1:0"}
    inside = settings.scheduler == "inside"
    return getattr(module, CLASSES[settings.kind])(
        n_workers=0,
        security=_security(keys),
        scheduler_options=scheduler if inside else scheduler | {"settings": dict(config)},
        **({} if inside else {"scheduler_cls": OwnScheduler}),
        silence_logs=logging.CRITICAL,
        **job_options(settings.kind, settings.job, name, threads, logs, environment),
    )


def job_options(
    kind: str, job: JobSettings, name: str, threads: int, logs: Path, environment: Mapping[str, str]
) -> dict[str, Any]:
    """What dask-jobqueue's class for a queue is told of a job; of others than Slurm never tried on a real queue."""
    memory_mb = int(job.memory_gb * 1000)
    life, stagger = lifetime_s(job.walltime)
    asked: dict[str, dict[str, Any]] = {
        "slurm": {"account": job.account, "job_cpu": job.cores, "job_mem": f"{int(job.memory_gb * 1e9 / 2**20)}M"},
        "pbs": {
            "account": job.account,
            "resource_spec": f"select=1:ncpus={job.cores}:mem={memory_mb}MB" + ":ngpus=1" * job.gpus,
        },
        "lsf": {"project": job.account, "ncpus": job.cores, "mem": memory_mb * 10**6},
        "sge": {"project": job.account, "resource_spec": f"h_vmem={memory_mb // job.cores}M"},
    }
    directives = {
        "slurm": ["--gres=gpu:1"] * job.gpus,
        "pbs": [],
        "lsf": ['-gpu "num=1"'] * job.gpus,
        "sge": [f"-pe smp {job.cores}", *["-l gpu=1"] * job.gpus],
    }
    exports = [f"export {key}={value}" for key, value in environment.items()]
    return {
        "queue": job.partition,
        "walltime": _clock(walltime_s(job.walltime), seconds=kind != "lsf"),
        "interface": job.interface,
        "local_directory": job.scratch or "${TMPDIR:-/tmp}",
        "cores": threads,
        "processes": 1,
        "memory": f"{memory_mb} MB",
        "job_name": name,
        "log_directory": str(logs),
        "death_timeout": DEATH_TIMEOUT_S,
        "worker_extra_args": ["--no-dashboard", "--lifetime", f"{life}s", "--lifetime-stagger", f"{stagger}s"],
        "job_extra_directives": [*directives[kind], *job.directives],
        "job_script_prologue": [
            "export PYTHONSAFEPATH=1",  # a job may start in a folder of everybody's: nothing is imported from it
            *exports,
            f"export {UNTIL}=$(( $(date +%s) + {life + stagger} ))",
            *job.setup,
            *NEEDS_GPU * job.gpus,
        ],
        **asked[kind],
    }


def lifetime_s(walltime: str) -> tuple[int, int]:
    """How long a worker lives in a job, and by how much more or less: they are not all to leave at once.

    >>> lifetime_s("04:00:00"), lifetime_s("00:02:00")
    ((14040, 300), (102, 6))
    """
    whole = walltime_s(walltime)
    margin, stagger = min(60, whole // 10), min(300, whole // 20)
    return whole - margin - stagger, stagger


def _clock(whole: int, seconds: bool) -> str:
    """A walltime as every queue reads it, without days.

    >>> _clock(95400, True), _clock(95400, False)
    ('26:30:00', '26:30')
    """
    return f"{whole // 3600:02}:{whole // 60 % 60:02}" + f":{whole % 60:02}" * seconds


@contextmanager
def _keys(folder: Path) -> Iterator[Path]:
    """A folder for the keys of one run, which its user alone may read; those that killed drivers left are removed."""
    here = f"keys-{socket.gethostname()}-"
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"{here}*"):
        pid = left.name.removeprefix(here).partition("-")[0]
        if not Path("/proc", pid).exists():
            shutil.rmtree(left, ignore_errors=True)
    made = Path(tempfile.mkdtemp(prefix=f"{here}{os.getpid()}-", dir=folder))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _security(keys: Path) -> Security:
    """Certificates for this run alone, in files that its user alone may read: scheduler, workers and driver share one.

    Whoever has them can run code as the user, and no one else gets a word in.
    """
    made = Security.temporary()
    names = {"tls_ca_file": "ca", **{f"tls_{role}_{part}": part for role in ROLES for part in ("key", "cert")}}
    for field, name in names.items():
        with open(keys / name, "w", opener=partial(os.open, mode=0o600)) as file:
            file.write(getattr(made, field))
    return Security(require_encryption=True, **{field: str(keys / name) for field, name in names.items()})


def _refuse_bad_job(kind: str, script: str) -> None:
    """Slurm says beforehand whether it would take a job; other queues say so in their logs."""
    if kind != "slurm":
        return
    asked = _asked(["sbatch", "--test-only"], script)
    if asked.returncode:
        options = "; ".join(line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH"))
        raise UserError(f"[cluster.job]: Slurm refuses such a job: {_said(asked)} It was asked for: {options}")


def _said(asked: subprocess.CompletedProcess[str]) -> str:
    return " ".join(line.removeprefix("sbatch: error: ") for line in asked.stderr.strip().splitlines())


def _asked(command: list[str], told: str = "") -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, input=told, capture_output=True, text=True, check=False, timeout=120)
    except FileNotFoundError:
        raise UserError(
            f"there is no `{command[0]}` on this machine: run where jobs can be submitted, or set cluster.kind"
        ) from None
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"`{command[0]}` did not answer within two minutes")


class _Keeper:
    """Keeps so many jobs in the queue or running: whatever ends one, another is asked for."""

    def __init__(self, cluster: Any, kind: str, count: int, logs: Path) -> None:
        self.cluster, self.kind, self.count, self.logs = cluster, kind, count, logs
        self.ended = 0  # jobs, since the start or since the last worker joined
        self.refused = 0  # jobs, one after the other
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="neurovol jobs", daemon=True)

    def start(self, client: Client, partition: str | None) -> None:
        """Ask for the jobs, and wait for the first worker however long the queue is."""
        if self.kind == "slurm":
            self.cluster.scale(self.count)
            self._thread.start()
        else:
            self.cluster.adapt(minimum=self.count, maximum=self.count)
        said_at, roll = 0.0, Roll(client)
        while not roll.call():
            if time.monotonic() - said_at > SAY_S:
                said_at = time.monotonic()
                log.info(
                    "waiting in the queue%s for the first of %d jobs", f" {partition}" if partition else "", self.count
                )
            time.sleep(0.5)

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _keep(self) -> None:
        wait = LOOK_S
        while not self._stop.wait(wait):
            try:
                wait = self._look()
            except (UserError, OSError) as error:  # as where no process can be forked; the next look may do better
                log.warning("the queue cannot be looked at: %s", error)

    def _look(self) -> float:
        """See which jobs ended, and ask for as many anew; seconds until the next look."""
        jobs = dict(self.cluster.workers)
        held = {name: str(job.job_id) for name, job in jobs.items() if job.job_id}
        refused = [name for name in jobs if name not in held]  # as they were submitted; Dask never asks for them again
        listed = _listed()
        ended = [] if listed is None else [name for name, job in held.items() if job not in listed]
        joined = bool(self.cluster.scheduler_info["workers"])
        self.ended = 0 if joined else self.ended + len(ended)
        self.refused = 0 if len(held) >= self.count else self.refused + len(refused)
        self.cluster.stillborn = self._stillborn()
        if ended:
            named = ", ".join(held[name] for name in ended)
            log.warning("%d jobs ended (%s); as many are asked for anew", len(ended), named)
        if refused:
            log.warning("%d jobs were refused (%s); as many are asked for anew", len(refused), self._refusal())
        if ended or refused or len(jobs) < self.count:  # Dask forgets a job whose worker is lost for 15 s
            self.cluster.loop.add_callback(self._replace, [*ended, *refused])
        tries = (self.ended + self.refused) / self.count
        return float(min(LOOK_S * 2**tries, MOST_LOOK_S[joined]))  # a queue is not flooded

    def _stillborn(self) -> str:
        """Why no worker will ever join; nothing as long as one may. See Roll."""
        if self.ended >= MOST_STILLBORN * self.count:
            return f"{self.ended} jobs ended before a worker of theirs joined: {_last_words(self.logs)}"
        if self.refused >= MOST_REFUSED * self.count:
            return f"{self.refused} jobs were refused: {self._refusal()}"
        return ""

    def _refusal(self) -> str:
        """What the queue has against such a job; where it takes one just now, that."""
        asked = _asked(["sbatch", "--test-only"], self.cluster.job_script())
        return _said(asked) if asked.returncode else "the queue would take one now"

    async def _replace(self, gone: list[str]) -> None:
        for name in gone:
            job = self.cluster.workers.pop(name, None)
            if job is not None:
                await job.close()
                job.status = Status.closed  # Dask asserts it in the end, also of one that was never begun
        self.cluster.scale(self.count)  # opens what is wanted and not there


def _listed() -> set[str] | None:
    """The jobs of this user that Slurm still has, waiting or running; None where it does not answer."""
    asked = _asked(["squeue", "--me", "--noheader", "--format=%i"])
    return None if asked.returncode else set(asked.stdout.split())


def _last_words(logs: Path) -> str:
    """The end of the newest log of a job."""
    found = sorted(logs.glob("*.err"), key=lambda file: file.stat().st_mtime)
    for file in reversed(found):
        with suppress(OSError):
            lines = file.read_text(errors="replace").strip().splitlines()
            if lines:
                return f"{file} ends with: {lines[-1]}"
    return f"their logs in {logs} say nothing"
