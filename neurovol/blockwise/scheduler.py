"""Dask's scheduler as a process of its own: a busy driver does not keep it waiting, and it dies with the driver.

`python -m neurovol.blockwise.scheduler` reads one line of JSON, says its address in one line, and runs until its
standard input ends: whatever becomes of the driver, kill -9 too, ends that.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import dask
from distributed import Scheduler, Security
from distributed.core import Status

from neurovol.errors import Failure

START_S = 120.0  # a few seconds on an idle machine
END_S = 10.0
CLOSE_S = 60.0  # that workers and scheduler may take to end when they are asked to


class OwnScheduler:
    """What a Dask cluster takes in place of a Scheduler: one in a process of its own.

    `settings` is Dask's configuration for it; all else goes to Scheduler.
    """

    def __init__(self, settings: Mapping[str, Any], security: Security | None = None, **options: Any) -> None:
        self._status = Status.created
        self.address = ""
        self._told = {"settings": dict(settings), "security": _spelled(security), "options": options}
        self._process: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()

    @property
    def status(self) -> Status:
        """Closed where its process has ended, by whatever."""
        if self._process is not None and self._process.returncode is not None:
            return Status.closed
        return self._status

    def __await__(self) -> Generator[Any, None, OwnScheduler]:
        return self._started().__await__()

    async def _started(self) -> OwnScheduler:
        async with self._lock:  # a cluster awaits its scheduler more than once
            if self.status == Status.created:
                await self._start()
        return self

    async def _start(self) -> None:
        command = [sys.executable, "-P", "-m", "neurovol.blockwise.scheduler"]  # no folder it is started in
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(self._told).encode() + b"\n")
        line = await asyncio.wait_for(self._process.stdout.readline(), START_S)
        if not line:
            raise Failure("Dask's scheduler ended as it started; what it said is above")
        self.address = line.decode().strip()
        self._status = Status.running

    def kill(self) -> None:
        """End it without asking."""
        self._status = Status.closed
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def close(self) -> None:
        """End it; kill it where it does not end within END_S."""
        self._status = Status.closed
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            try:
                await asyncio.wait_for(self._process.wait(), END_S)
            except TimeoutError:
                self._process.kill()
                await self._process.wait()


@contextmanager
def not_waiting_for_the_dead(cluster: Any) -> Iterator[None]:
    """Closes a Dask cluster whose scheduler may have been killed: it would ask that one to end for half a minute."""
    try:
        yield
    finally:
        cluster.shutdown_scheduler = cluster.scheduler.status == Status.running
        try:
            cluster.close(timeout=CLOSE_S)
        except (OSError, AssertionError):  # it died just now, or says nothing (TimeoutError); or a job was never begun
            if isinstance(cluster.scheduler, OwnScheduler):
                cluster.scheduler.kill()
            cluster.shutdown_scheduler = False
            cluster.status = Status.failed
            with suppress(AssertionError, OSError):  # whatever is left ends with this process, jobs a minute later
                cluster.close(timeout=CLOSE_S)
            cluster.status = Status.closed


def _spelled(security: Security | None) -> dict[str, Any]:
    """What a Security is made of, keys too: they go through the pipe, and are seen by no one else."""
    if security is None:
        return {}
    fields = {name: getattr(security, name) for name in Security.__slots__ if not name.startswith("_")}
    return {name: value for name, value in fields.items() if isinstance(value, str | bool)}


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    orders = asyncio.StreamReader(limit=2**20)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    told = json.loads(await orders.readline())
    dask.config.set(told["settings"])
    for name in ("distributed", "tornado"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    scheduler = await Scheduler(security=Security(**told["security"]), **told["options"])
    print(scheduler.address, flush=True)
    ended = [asyncio.ensure_future(orders.read()), asyncio.ensure_future(scheduler.finished())]
    await asyncio.wait(ended, return_when=asyncio.FIRST_COMPLETED)
    with suppress(TimeoutError):
        await asyncio.wait_for(scheduler.close(), END_S)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; it is the driver that decides
    asyncio.run(_serve())
