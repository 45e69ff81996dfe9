"""What is asked of a scheduler, in bounded time: it may be cut off, and so may each of its workers."""

from __future__ import annotations

import logging
import os
import queue
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from distributed import CancelledError, Client
from distributed.client import ClosedClientError
from distributed.comm.core import CommClosedError

from neurovol.errors import Failure

log = logging.getLogger(__name__)

CONNECT_S = 20.0  # that a scheduler has to come back in, too
SCHEDULER_S = 60.0  # that a scheduler has to answer in; a busy one takes seconds
WORKER_S = 20.0  # that a worker has to be killed in
NO_WORKER_S = 600.0  # that a scheduler which already ran may be without any


class ClusterLost(Failure):
    """The scheduler, or the way to it, is gone; a new cluster may go on."""


LOST = CancelledError, ClosedClientError, CommClosedError  # what Dask raises where its scheduler goes, by the moment


@contextmanager
def reaching() -> Iterator[None]:
    """ClusterLost in place of whatever Dask raises where its scheduler goes while it is asked something."""
    try:
        yield
    except LOST as error:
        raise ClusterLost(f"the connection to the scheduler was lost: {error}") from None


def connect(address: str) -> Client:
    """A client of a scheduler that runs; raises OSError where it does not answer, ValueError where it cannot be one.

    Dask waits for ever for a scheduler that lets one in and then says nothing, as behind a network that is cut.
    """
    answer: queue.SimpleQueue[Client | Exception] = queue.SimpleQueue()
    late = threading.Event()
    threading.Thread(target=_connect, args=(address, answer, late), daemon=True).start()
    try:
        found = answer.get(timeout=1.5 * CONNECT_S)
    except queue.Empty:
        late.set()
        raise TimeoutError(f"it said nothing for {1.5 * CONNECT_S:.0f} s") from None
    if isinstance(found, Exception):
        raise found
    return found


def _connect(address: str, answer: queue.SimpleQueue[Client | Exception], late: threading.Event) -> None:
    try:
        client = Client(address, timeout=CONNECT_S)
    except Exception as error:
        answer.put(error)
        return
    if late.is_set():
        client.close()
    answer.put(client)


class Roll:
    """Calls the roll of a scheduler's workers, and says when to wait for them no more."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._last_at = time.monotonic()  # that there was any

    def call(self) -> dict[str, int]:
        """The threads of each worker, by address.

        Raises ClusterLost where the scheduler does not answer, Failure where nobody here starts workers and there has
        been none for NO_WORKER_S, or where jobs end before they join. In their queue they may wait as long as it takes.
        """
        if self._client.status == "closed":  # Dask gave up, and would raise AttributeError
            raise ClusterLost("the connection to the scheduler was lost")
        try:
            workers: dict[str, int] = self._client.nthreads(callback_timeout=SCHEDULER_S)
        except OSError as error:
            said = str(error) or f"it did not answer within {SCHEDULER_S:.0f} s"
            raise ClusterLost(f"the connection to the scheduler was lost: {said}") from None
        now = time.monotonic()
        if workers or self._client.cluster is not None:
            self._last_at = now
        if not workers and (why := getattr(self._client.cluster, "stillborn", "")):
            raise Failure(f"{why}; what is finished is kept: see to the jobs, and run again to go on")
        if now - self._last_at > NO_WORKER_S:
            address = self._client.scheduler_info(n_workers=0)["address"]
            raise Failure(
                f"cluster.address {address}: no worker has been there for "
                f"{NO_WORKER_S / 60:.0f} minutes; what is finished is kept: start workers there, and run again to go on"
            )
        return workers


def kill_worker(client: Client, address: str, pid: int) -> None:
    """Kill a worker's process where it runs, by its nanny if it has one, which then starts another.

    Returns at once: a machine that does not answer keeps no one waiting. The scheduler then does without that worker,
    and takes back what it was given.
    """
    threading.Thread(target=_kill, args=(client, address, pid), daemon=True).start()


def _kill(client: Client, address: str, pid: int) -> None:
    with suppress(Exception):  # the client may be closed meanwhile; who still wants the worker killed asks again
        worker = client.scheduler_info(n_workers=-1)["workers"].get(address, {})
        nanny = worker.get("nanny") is not None
        gone_by = time.monotonic() + WORKER_S
        with suppress(TimeoutError):
            client.run(
                os.kill, pid, signal.SIGKILL, workers=[address], nanny=nanny, on_error="ignore",
                callback_timeout=WORKER_S,
            )  # fmt: skip
        while address in client.nthreads(callback_timeout=SCHEDULER_S):
            if time.monotonic() > gone_by:
                log.warning("worker %s cannot be killed: others are to do what it was given", address)
                client.sync(_forget, client, address, callback_timeout=SCHEDULER_S)
                return
            time.sleep(0.2)


async def _forget(client: Client, address: str) -> None:
    """What nannies do when their workers have died."""
    if client.scheduler is not None:
        await client.scheduler.unregister(address=address, stimulus_id="neurovol-cut-off")
