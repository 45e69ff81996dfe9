"""One attempt at some blocks, on a worker: one thread computes, while another waits for the disk."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from distributed import get_worker

from neurovol.blockwise.marker import asked_to_stop, marked, own_address
from neurovol.errors import DiskFull, Failure, UserError
from neurovol.geometry import Block, Receipt

BlockTask = Callable[[Block], Receipt]  # a small frozen picklable object
Group = tuple[Block, ...]  # blocks side by side along x, computed together

_OURS = f"{Failure.__module__}.{Failure.__qualname__}: "  # as a traceback names it
_THREADS = "neurovol"


@dataclass(frozen=True)
class Landing:
    """Blocks that are computed, and on their way to disk; `wait` returns when all of them are durable."""

    receipts: Sequence[Receipt]
    wait: Callable[[], None]


@runtime_checkable
class TogetherTask(Protocol):
    """A task that does several blocks at once more quickly than one by one, with the same results.

    What it begins is waited for while the next blocks are computed.
    """

    def __call__(self, block: Block) -> Receipt: ...
    def begin(self, blocks: Sequence[Block]) -> Landing: ...


@dataclass(frozen=True)
class Attempt:
    """What a worker says of one attempt at a block: a receipt, or why it failed."""

    block: Block
    number: int  # from 1 on; 0 where it was tried together with others, which says nothing of this block
    seconds: float
    receipt: Receipt | None = None
    error: str | None = None  # the traceback, or a user error's text
    hopeless: bool = False  # trying again cannot help
    disk_full: bool = False
    begun: bool = True  # False where the driver asked to stop before

    @property
    def crc32c(self) -> int | None:
        """Of the voxels written; None where the attempt failed."""
        return None if self.receipt is None else self.receipt.crc32c

    @property
    def last_line(self) -> str:
        """What a person wants to read of the error: of our own ones their text alone."""
        return (self.error or "").strip().rpartition("\n")[2].removeprefix(_OURS)


@dataclass(frozen=True)
class Order:
    """What a future is to do: groups of blocks, one after the other."""

    groups: tuple[Group, ...]
    number: int  # of the attempt, from 1 on
    token: str  # of this future alone
    markers: str = ""  # folder for start markers; none where it is empty


class _Stopped(Exception):
    """The driver wants no further block begun."""


def attempt(task: BlockTask, order: Order) -> list[Attempt]:
    """Run a task on blocks, on a worker; never raises, so that Dask does not judge failures."""
    threads, worker = _computing(), own_address()
    begun = [threads.submit(_compute, task, group, order, worker) for group in order.groups]
    return [result for group, going in zip(order.groups, begun, strict=True) for result in _landed(group, order, going)]


def _computing() -> Executor:
    """The worker's threads for arithmetic: one fewer than Dask's own, of which one waits for the disk."""
    worker = get_worker()
    if _THREADS not in worker.executors:
        threads = ThreadPoolExecutor(max(1, worker.state.nthreads - 1), _THREADS)
        worker.executors.setdefault(_THREADS, threads)  # another task may have been quicker
    return worker.executors[_THREADS]


def _compute(task: BlockTask, group: Group, order: Order, worker: str) -> tuple[float, Landing]:
    """When the group was begun, and what became of it."""
    start = time.perf_counter()
    if asked_to_stop(order.markers):
        raise _Stopped
    with marked(order.markers, worker, order.token, group[0].index):
        if isinstance(task, TogetherTask):
            return start, task.begin(group)
        return start, Landing([task(block) for block in group], _nothing)


def _nothing() -> None:
    """Of what is on disk already."""


def _landed(group: Group, order: Order, going: Future[tuple[float, Landing]]) -> list[Attempt]:
    number = order.number
    try:
        start, landing = going.result()
        landing.wait()
    except _Stopped:
        return [Attempt(block, number, 0.0, begun=False) for block in group]
    except UserError as error:
        return failed(group, number, str(error), hopeless=len(group) == 1)
    except DiskFull as error:
        return failed(group, number, str(error), disk_full=True)
    except Exception:
        return failed(group, number, traceback.format_exc())
    seconds = (time.perf_counter() - start) / len(group)
    return [Attempt(b, number, seconds, receipt) for b, receipt in zip(group, landing.receipts, strict=True)]


def failed(group: Group, number: int, error: str, *, hopeless: bool = False, disk_full: bool = False) -> list[Attempt]:
    """Of blocks that were tried together none is blamed: each is tried by itself next."""
    number = number if len(group) == 1 else 0
    return [Attempt(b, number, 0.0, error=error, hopeless=hopeless, disk_full=disk_full) for b in group]
