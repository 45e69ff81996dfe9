"""Where blocks are computed: workers on this machine, jobs of a queue, or a scheduler that already runs."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar

import dask
from distributed import Client, KilledWorker, Nanny, Scheduler, SpecCluster, wait
from distributed.system import MEMORY_LIMIT

from neurovol.blockwise.reach import LOST, ClusterLost, Roll, connect, reaching
from neurovol.blockwise.scheduler import OwnScheduler, not_waiting_for_the_dead
from neurovol.clustersettings import ClusterSettings
from neurovol.errors import Failure

log = logging.getLogger(__name__)

MOST_DEATHS = 3  # of workers that something is tried on before a step
LOOK_S = 5.0
MOST_LOSSES = 3  # of clusters in a row on which no block was done

# Dask has workers give memory back at once; blocks then pay the first touch of fresh pages again and again,
# which costs copying and encoding half of their speed. A worker keeps what a few blocks need.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": 2**25, "MALLOC_TRIM_THRESHOLD_": 2**28}

# Looking at itself ten to a hundred times a second costs Dask's workers a fifth of their speed, and no one looks. Nor
# at the last thousand messages to each worker, which the scheduler keeps, with all that futures were given.
QUIET = {
    "distributed.admin.low-level-log-length": 10,
    "distributed.worker.profile.enabled": False,
    "distributed.admin.system-monitor.interval": "5s",
    "distributed.admin.tick.interval": "1s",
}

# Of all the tasks that wait on a worker that dies Dask knows not which one ran: it is to ask us, each time (marker.py).
BLAME = {"distributed.scheduler.allowed-failures": 0}

# A nanny starts another worker whenever its own dies. Dask looks 15 s after a death whether it did, and else closes the
# nanny for good; a worker that dies just then once more would be missing for the rest of the run.
KEEP = {"distributed.deploy.lost-worker-timeout": "10000 days"}

# Ctrl-C at a terminal reaches every process; it is the driver that decides what becomes of running blocks.
UNHEEDING = "import signal\n\ndef dask_setup(worker):\n    signal.signal(signal.SIGINT, signal.SIG_IGN)\n"

# Dask's client keeps a message back for 10 ms after another, for what else may come: a step's first blocks waited so.
SEND_S = 0.001

THREADS = 2  # of a worker: one computes, one waits for the disk
MOST_WORKERS = 4  # each holds a network's activations; more by setting


T = TypeVar("T")


class Work(Protocol):
    """Does a step, whatever part of it is not done yet."""

    def __call__(self, *, client: Client) -> None: ...


def cores() -> int:
    """The cores this process may use (a Slurm job's share, not the whole machine)."""
    return len(os.sched_getaffinity(0))


def worker_count(settings: ClusterSettings) -> int:
    """Worker processes: as set, else one job of a queue, one per GPU, or one per two cores of this machine."""
    if settings.queued:
        return settings.workers or 1
    return settings.workers or settings.gpus or max(1, min(MOST_WORKERS, cores() // 2))


def thread_count(settings: ClusterSettings) -> int:
    """Threads of a worker's arithmetic: as set, else the cores of its job, or this machine's shared among all."""
    if settings.queued:
        return settings.threads or settings.job.cores
    return settings.threads or max(1, cores() // worker_count(settings))


@contextmanager
def open_client(settings: ClusterSettings, folder: Path | None = None, name: str = "neurovol") -> Iterator[Client]:
    """A Dask client for the length of a `with`; what workers it starts are stopped with it.

    Jobs of a queue are called `name`; their logs and keys lie in `folder`, which they have to see.
    """
    _quieten()
    with _client(settings, folder, name) as client:
        if client.scheduler_comm is not None:
            client.scheduler_comm.interval = SEND_S
        yield client


@contextmanager
def _client(settings: ClusterSettings, folder: Path | None, name: str) -> Iterator[Client]:
    if settings.kind == "address":
        with _connected(str(settings.address)) as client:
            yield client
    elif settings.queued:
        from neurovol.blockwise.jobs import open_jobs

        environment = {key: str(value) for key, value in (MALLOC | _threads(settings)).items()} | _spelled(QUIET)
        folder = Path("jobs").absolute() if folder is None else folder
        config = QUIET | BLAME
        with dask.config.set(config), open_jobs(settings, folder, name, THREADS, environment, config) as client:
            yield client
    else:
        with _local(settings) as client:
            yield client


@contextmanager
def _local(settings: ClusterSettings) -> Iterator[Client]:
    environment = dict(os.environ)
    threads = _threads(settings)
    spawn = {"distributed.nanny.pre-spawn-environ": MALLOC | {"OMP_NUM_THREADS": threads["OMP_NUM_THREADS"]}}
    here = {"host": "127.0.0.1", "protocol": "tcp://"}
    dashboard = {"dashboard": True, "dashboard_address": "127.0.0.1:0"}
    worker = {
        "cls": Nanny,
        "options": here
        | {
            "nthreads": THREADS,
            "memory_limit": MEMORY_LIMIT // worker_count(settings),  # Dask's own default is by threads, of all cores
            "dashboard": False,
            "silence_logs": logging.CRITICAL,
            "env": threads | {"DASK_LOGGING__DISTRIBUTED": "critical"},
        },
    }
    scheduler: dict[str, Any] = {"cls": Scheduler, "options": here | dashboard}
    if settings.scheduler == "process":
        scheduler = {"cls": OwnScheduler, "options": here | dashboard | {"settings": QUIET | BLAME | KEEP}}
    with (
        dask.config.set(QUIET | BLAME | KEEP | spawn | {"distributed.worker.preload": [UNHEEDING]}),
        SpecCluster(
            workers={n: _on_gpu(worker, n, settings.gpus) for n in range(worker_count(settings))},
            scheduler=scheduler,
            worker=worker,
            silence_logs=logging.CRITICAL,
        ) as cluster,
        not_waiting_for_the_dead(cluster),
        Client(cluster) as client,
    ):
        # Dask leaves OMP_NUM_THREADS=1 and more behind in this process, and in all that it starts
        os.environ.clear()
        os.environ.update(environment)
        yield client


def _on_gpu(worker: dict[str, Any], number: int, gpus: int | None) -> dict[str, Any]:
    """A worker that sees one of so many GPUs alone; None leaves it as it is."""
    if gpus is None:
        return worker
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    mine = (visible or [str(n) for n in range(gpus)])[number % gpus] if gpus else ""
    options = worker["options"]
    return worker | {"options": options | {"env": options["env"] | {"CUDA_VISIBLE_DEVICES": mine}}}


def _threads(settings: ClusterSettings) -> dict[str, str]:
    """The environment that tells a worker's arithmetic how many threads to use."""
    count = str(thread_count(settings))
    return dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), count)


def _spelled(config: dict[str, Any]) -> dict[str, str]:
    """Dask's configuration as environment variables.

    >>> _spelled({"distributed.admin.tick.interval": "1s"})
    {'DASK_DISTRIBUTED__ADMIN__TICK__INTERVAL': '1s'}
    """
    return {f"DASK_{k}".upper().replace(".", "__").replace("-", "_"): str(v) for k, v in config.items()}


def _quieten() -> None:
    """Dask narrates every connection; what matters of a block stands in the ledger."""
    for name in logging.root.manager.loggerDict:
        if name.partition(".")[0] == "distributed":
            logging.getLogger(name).setLevel(logging.CRITICAL)


@contextmanager
def _connected(address: str) -> Iterator[Client]:
    try:
        client = connect(address)
    except (OSError, ValueError) as error:
        raise Failure(f"cluster.address {address}: no scheduler answers there ({error}); is it running?") from None
    with client:
        yield client


def on_worker(client: Client, function: Callable[[], T]) -> T:
    """What a function returns where blocks are computed; raises what it raises.

    Raises ClusterLost, and Failure where no worker comes or those that it is tried on die.
    """
    roll = Roll(client)
    for _ in range(MOST_DEATHS):
        with reaching():
            future = client.submit(function, pure=False)
            while not future.done():
                roll.call()
                with suppress(TimeoutError):
                    wait(future, timeout=LOOK_S)
            try:
                result: T = future.result()
            except KilledWorker:  # its job may just have ended
                continue
            return result
    raise Failure(f"{MOST_DEATHS} workers died of a trial on one of them; see their logs, and run again to go on")


def _innermost(error: BaseException) -> BaseException:
    """What an error came of: Dask wraps it several times."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


class Workers:
    """The workers of one stage at a time, kept while the next wants the same; others where they are lost.

    `folder` is where jobs of a queue have their logs.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._stack = ExitStack()
        self._client: Client | None = None
        self._settings: ClusterSettings | None = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, tb)

    def persevere(self, settings: ClusterSettings, step: str, work: Work, done: Callable[[], int]) -> None:
        """Do what a step has to do; where the cluster is lost, go on with another, as long as anything gets done.

        `done` counts the blocks that are. Raises Failure after MOST_LOSSES clusters in a row on which none was done.
        """
        losses, before = 0, -1
        while True:
            try:
                work(client=self._opened(settings, step))
                return
            except ClusterLost as lost:
                self._leave()
                now = done()
                losses, before = losses + 1 if now == before else 1, now
                if losses > MOST_LOSSES:
                    raise Failure(
                        f"{step}: {lost}, {losses} times with no block done in between; what is finished is kept: "
                        f"see to the cluster, and run again to go on"
                    ) from None
                log.warning("%s: %s; going on with another cluster", step, lost)

    def release_jobs(self) -> None:
        """Give jobs back to their queue, before hours in which they would idle; workers of this machine stay."""
        if self._settings is not None and self._settings.queued:
            self._leave()

    def _opened(self, settings: ClusterSettings, step: str) -> Client:
        if self._client is None or settings != self._settings:
            self._leave()
            name = f"neurovol {step}".replace(" ", "-")  # of the first of the steps that they are for
            try:
                self._client = self._stack.enter_context(open_client(settings, self._folder, name))
            except (RuntimeError, OSError, *LOST) as error:  # what Dask raises where it cannot start them
                if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise ClusterLost(f"workers could not be started: {_innermost(error)}") from error
            self._settings = settings
        return self._client

    def _leave(self) -> None:
        self._client = None
        self._stack.close()
