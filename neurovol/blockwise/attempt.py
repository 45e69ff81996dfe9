"""One attempt at some blocks, on a worker: one thread computes, while another waits for the disk."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, runtime_checkable

from distributed import Worker, get_worker

from neurovol.blockwise.lifetime import may_begin
from neurovol.blockwise.marker import Slot
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
    worker: str = ""  # its address, where the order asks for it

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
    needs_s: float = 0.0  # that a block takes, nearly always
    name_worker: bool = False


Begun = tuple[float, Landing]  # how many seconds a group took to compute, and what is on its way


def attempt(task: BlockTask, order: Order) -> list[Attempt]:
    """Run a task on blocks, on a worker; never raises, so that Dask does not judge failures.

    Of blocks that were not begun, because the driver asked to stop or the worker's time is up, nothing is said.
    """
    worker = get_worker()
    outcomes = _computing(worker).submit(_compute, task, order, worker).result()
    results: list[Attempt] = []
    for group, outcome in zip(order.groups, outcomes, strict=True):
        results += outcome if isinstance(outcome, list) else _landed(group, order.number, outcome)
    return [replace(r, worker=str(worker.address)) for r in results] if order.name_worker else results


def _computing(worker: Worker) -> Executor:
    """A worker's threads for arithmetic: one fewer than Dask's own, of which one waits for the disk."""
    if _THREADS not in worker.executors:
        threads = ThreadPoolExecutor(max(1, worker.state.nthreads - 1), _THREADS)
        worker.executors.setdefault(_THREADS, threads)  # another task may have been quicker
    return worker.executors[_THREADS]


def _compute(task: BlockTask, order: Order, worker: Worker) -> list[Begun | list[Attempt]]:
    """Of each group what is on its way, or how it failed."""
    marker = Slot.of(order.markers, str(worker.address))
    begin = task.begin if isinstance(task, TogetherTask) else partial(_one_by_one, task)
    with marker.held() if len(order.groups) > 1 else nullcontext():
        return [_begun(begin, group, order, marker, worker) for group in order.groups]


def _one_by_one(task: BlockTask, group: Group) -> Landing:
    return Landing([task(block) for block in group], _nothing)


def _begun(
    begin: Callable[[Group], Landing], group: Group, order: Order, marker: Slot, worker: Worker
) -> Begun | list[Attempt]:
    start = time.perf_counter()
    if marker.asked_to_stop() or not may_begin(worker, order.needs_s * len(group)):
        return []
    marker.write(order.token, group[0].index)
    try:
        landing = begin(group)
        return time.perf_counter() - start, landing
    except Exception as error:
        return _told(group, order.number, error)
    finally:
        marker.write(order.token, None)


def _nothing() -> None:
    """Of what is on disk already."""


def _landed(group: Group, number: int, begun: Begun) -> list[Attempt]:
    computed, landing = begun
    start = time.perf_counter()  # other groups were computed since
    try:
        landing.wait()
    except Exception as error:
        return _told(group, number, error)
    seconds = (computed + time.perf_counter() - start) / len(group)
    return [Attempt(b, number, seconds, receipt) for b, receipt in zip(group, landing.receipts, strict=True)]


def _told(group: Group, number: int, error: Exception) -> list[Attempt]:
    """What a failure comes to, told in text, for what raised it may be large."""
    if isinstance(error, UserError):
        return failed(group, number, str(error), hopeless=len(group) == 1)
    if isinstance(error, DiskFull):
        return failed(group, number, str(error), disk_full=True)
    return failed(group, number, "".join(traceback.format_exception(error)))


def failed(group: Group, number: int, error: str, *, hopeless: bool = False, disk_full: bool = False) -> list[Attempt]:
    """Of blocks that were tried together none is blamed: each is tried by itself next."""
    number = number if len(group) == 1 else 0
    return [Attempt(b, number, 0.0, error=error, hopeless=hopeless, disk_full=disk_full) for b in group]
