"""Workers that will not live for ever: nothing is begun that cannot be finished before a job's walltime ends."""

from __future__ import annotations

import asyncio
import os
import threading
import time

import psutil
from distributed import Worker
from distributed.core import Status

UNTIL = "NEUROVOL_UNTIL"  # environment of a job: when its walltime ends, nearly, in seconds of the epoch
LAST_WORDS_S = 30.0  # that results under way have to be told

_worked = threading.Event()  # this worker has begun something; a worker is a process of its own
_leaves = threading.Event()


def may_begin(worker: Worker, seconds: float) -> bool:
    """Whether a worker is to begin what takes so long; if not, it leaves as soon as what it has computed is told.

    A worker that has done nothing yet begins anything: no other would have more time.
    """
    if not _leaves.is_set() and (not _worked.is_set() or time.time() + seconds < _end(worker)):
        _worked.set()
        return True
    if not _leaves.is_set():
        _leaves.set()
        worker.loop.add_callback(_leave, worker)
    return False


def _end(worker: Worker) -> float:
    """When a worker is to be gone: by its job, or by `dask worker --lifetime`; of others never."""
    told, lifetime = os.environ.get(UNTIL), worker.lifetime
    by_lifetime = psutil.Process().create_time() + float(lifetime) if lifetime else float("inf")
    return min(by_lifetime, float(told) if told else float("inf"))


async def _leave(worker: Worker) -> None:
    """Have a worker take no more work, tell its results, and go, with its nanny: another is started elsewhere."""
    worker.status = Status.paused
    end = time.monotonic() + LAST_WORDS_S
    while worker.state.executing and time.monotonic() < end:
        await asyncio.sleep(0.05)
    await worker.close_gracefully(restart=False, reason="no time is left for a block")
