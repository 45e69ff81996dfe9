"""Where blocks are computed: workers on this machine, or a scheduler that already runs."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import TracebackType
from typing import Protocol

import dask
from distributed import Client, LocalCluster
from distributed.system import MEMORY_LIMIT

from neurovol.errors import Failure
from neurovol.settings import ClusterSettings

log = logging.getLogger(__name__)

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

THREADS = 2  # of a worker: one computes, one waits for the disk
MOST_WORKERS = 4  # each holds a network's activations; more by setting
CONNECT_SECONDS = 20  # that a scheduler has to come back in, too


class Work(Protocol):
    """Does a step, whatever part of it is not done yet."""

    def __call__(self, *, client: Client) -> None: ...


class ClusterLost(Failure):
    """The scheduler, or the way to it, is gone; a new cluster may go on."""


def cores() -> int:
    """The cores this process may use (a Slurm job's share, not the whole machine)."""
    return len(os.sched_getaffinity(0))


def worker_count(settings: ClusterSettings) -> int:
    """Worker processes on this machine: as set, else one per two cores."""
    return settings.workers or max(1, min(MOST_WORKERS, cores() // 2))


def thread_count(settings: ClusterSettings) -> int:
    """Threads of a worker's arithmetic: as set, else the cores shared among the workers."""
    return settings.threads or max(1, cores() // worker_count(settings))


@contextmanager
def open_client(settings: ClusterSettings) -> Iterator[Client]:
    """A Dask client for the length of a `with`; local workers are started and stopped with it."""
    _quieten()
    if settings.kind == "address":
        with _connected(str(settings.address)) as client:
            yield client
        return
    threads = str(thread_count(settings))
    environment = dict(os.environ)
    spawn = {"distributed.nanny.pre-spawn-environ": MALLOC | {"OMP_NUM_THREADS": threads}}
    with (
        dask.config.set(QUIET | BLAME | KEEP | spawn | {"distributed.worker.preload": [UNHEEDING]}),
        LocalCluster(
            n_workers=worker_count(settings),
            threads_per_worker=THREADS,
            memory_limit=MEMORY_LIMIT // worker_count(settings),  # Dask's own default is by threads, of all cores
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            silence_logs=logging.CRITICAL,
            env={
                **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads),
                "DASK_LOGGING__DISTRIBUTED": "critical",
            },
        ) as cluster,
        Client(cluster) as client,
    ):
        # Dask leaves OMP_NUM_THREADS=1 and more behind in this process, and in all that it starts
        os.environ.clear()
        os.environ.update(environment)
        yield client


def _quieten() -> None:
    """Dask narrates every connection; what matters of a block stands in the ledger."""
    for name in logging.root.manager.loggerDict:
        if name.partition(".")[0] == "distributed":
            logging.getLogger(name).setLevel(logging.CRITICAL)


@contextmanager
def _connected(address: str) -> Iterator[Client]:
    try:
        client = Client(address, timeout=CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        raise Failure(f"cluster.address {address}: no scheduler answers there ({error}); is it running?") from None
    with client:
        yield client


class Workers:
    """The workers of one stage at a time, kept while the next wants the same; others where they are lost."""

    def __init__(self) -> None:
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
        client = self._opened(settings)
        losses, before = 0, -1
        while True:
            try:
                work(client=client)
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
                client = self._opened(settings)

    def _opened(self, settings: ClusterSettings) -> Client:
        if self._client is None or settings != self._settings:
            self._leave()
            self._client, self._settings = self._stack.enter_context(open_client(settings)), settings
        return self._client

    def _leave(self) -> None:
        self._client = None
        self._stack.close()


def kill_worker(client: Client, address: str, pid: int) -> None:
    """Kill a worker's process where it runs, by its nanny if it has one, which then starts another.

    Returns at once: a machine that does not answer keeps no one waiting.
    """
    workers = client.scheduler_info(n_workers=-1)["workers"]
    if address in workers:
        nanny = workers[address].get("nanny") is not None
        kill = partial(client.run, os.kill, pid, signal.SIGKILL, workers=[address], nanny=nanny, on_error="ignore")
        threading.Thread(target=kill, daemon=True).start()
