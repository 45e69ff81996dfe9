"""Covers a volume with a task on Dask: bounded futures, receipts only, a ledger that survives the night."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol, cast

from distributed import Client, Future, as_completed

from neurovol.blockwise.ledger import Ledger
from neurovol.errors import DiskFull, Failure, UserError
from neurovol.geometry import Block, Receipt, side_by_side
from neurovol.progress import Progress, Report, silent

log = logging.getLogger(__name__)

BlockTask = Callable[[Block], Receipt]  # a small frozen picklable object


class TogetherTask(Protocol):
    """A task that does several blocks at once more quickly than one by one, with the same results."""

    def __call__(self, block: Block) -> Receipt: ...
    def together(self, blocks: Sequence[Block]) -> list[Receipt]: ...


_OURS = f"{Failure.__module__}.{Failure.__qualname__}: "  # as a traceback names it
Taken = tuple[Block, ...]  # what one future computes

PER_WORKER = 2  # futures outstanding per thread: one computing, one waiting, so that no worker idles
REPORT_SECONDS = 0.5
NAMED_IN_ERROR = 5


@dataclass(frozen=True)
class Attempt:
    """What a worker says of one attempt at a block: a checksum, or why it failed."""

    block: Block
    number: int  # from 1 on; 0 where it was tried together with others, which says nothing of this block
    seconds: float
    crc32c: int | None = None
    error: str | None = None  # the traceback, or a user error's text
    hopeless: bool = False  # trying again cannot help
    disk_full: bool = False

    @property
    def last_line(self) -> str:
        """What a person wants to read of the error: of our own ones their text alone."""
        return (self.error or "").strip().rpartition("\n")[2].removeprefix(_OURS)


def attempt(task: BlockTask | TogetherTask, blocks: Taken, number: int) -> list[Attempt]:
    """Run a task on a block, or some together, on a worker; never raises, so that Dask does not judge failures."""
    start = time.perf_counter()
    try:
        receipts = cast(TogetherTask, task).together(blocks) if len(blocks) > 1 else [task(blocks[0])]
    except UserError as error:
        return _failed(blocks, number, start, str(error), hopeless=len(blocks) == 1)
    except DiskFull as error:
        return _failed(blocks, number, start, str(error), disk_full=True)
    except Exception:
        return _failed(blocks, number, start, traceback.format_exc())
    seconds = (time.perf_counter() - start) / len(blocks)
    return [Attempt(b, number, seconds, crc32c=r.crc32c) for b, r in zip(blocks, receipts, strict=True)]


def _failed(
    blocks: Taken, number: int, start: float, error: str, *, hopeless: bool = False, disk_full: bool = False
) -> list[Attempt]:
    """Of blocks that were tried together none is blamed: each is tried by itself next."""
    seconds = (time.perf_counter() - start) / len(blocks)
    number = number if len(blocks) == 1 else 0
    return [Attempt(b, number, seconds, error=error, hopeless=hopeless, disk_full=disk_full) for b in blocks]


class _Submission:
    """Keeps a bounded number of futures going; retries come before new blocks."""

    def __init__(self, client: Client, task: BlockTask, blocks: Sequence[Block], together: int) -> None:
        self.client = client
        self.task = task
        self.fresh = ((taken, 1) for taken in side_by_side(blocks, together))
        self.again: list[tuple[Block, int]] = []
        self.going: dict[Future[list[Attempt]], tuple[Taken, int]] = {}
        self.completed = as_completed(raise_errors=False)

    def refill(self) -> None:
        threads = sum(self.client.nthreads().values()) or 1
        while len(self.going) < PER_WORKER * threads:
            if self.again:
                block, number = self.again.pop()
                taken: Taken = (block,)
            else:
                taken, number = next(self.fresh, ((), 0))
            if not taken:
                return
            future = self.client.submit(attempt, self.task, taken, number, pure=False)
            self.going[future] = (taken, number)
            self.completed.add(future)

    def __iter__(self) -> Iterator[Attempt]:
        self.refill()
        while self.going:
            future = next(self.completed)
            taken, number = self.going.pop(future)
            yield from future.result() if future.status == "finished" else _lost(future, taken, number)
            future.release()
            self.refill()

    def cancel(self) -> None:
        self.client.cancel(list(self.going))


def _lost(future: Future[list[Attempt]], taken: Taken, number: int) -> list[Attempt]:
    """An attempt whose worker died under it."""
    return _failed(taken, number, time.perf_counter(), f"the worker was lost: {future.exception()}")


class Meter:
    """Counts the blocks and voxels of a step, and reports at a bounded rate."""

    def __init__(self, ledger: Ledger, report: Report = silent) -> None:
        self.ledger, self.report = ledger, report
        self.already = len(ledger.done)
        self.voxels = 0
        self.start = time.monotonic()
        self.said_at = 0.0
        self.say()

    def add(self, block: Block) -> None:
        self.voxels += block.write.size
        if time.monotonic() - self.said_at > REPORT_SECONDS:
            self.say()

    def say(self) -> None:
        self.said_at = time.monotonic()
        done, header = len(self.ledger.done), self.ledger.header
        here, seconds = done - self.already, self.said_at - self.start
        self.report(Progress(header.step, done, header.total, "blocks", here, seconds, self.voxels))


def settled(
    client: Client, task: BlockTask, blocks: Sequence[Block], retries: int, together: int = 1
) -> Iterator[Attempt]:
    """The last attempt at each block, as they come: done, or failed for good after `retries` further attempts.

    Up to `together` blocks side by side along x are given to a TogetherTask at once. Raises DiskFull at once, as no
    block would fare better.
    """
    submission = _Submission(client, task, blocks, together)
    try:
        for result in submission:
            if result.disk_full:
                raise DiskFull(result.error)
            if result.error is None or result.hopeless or result.number > retries:
                yield result
            else:
                log.warning("block %d failed, trying again: %s", result.block.index, result.last_line)
                submission.again.append((result.block, result.number + 1))
    finally:
        submission.cancel()


def run_blocks(
    client: Client,
    task: BlockTask,
    blocks: Sequence[Block],
    meter: Meter,
    *,
    retries: int = 2,
    refuse: bool = True,
    together: int = 1,
) -> None:
    """Run `task` on every block that the meter's ledger does not call done.

    A block that fails is tried again `retries` times, then quarantined with its traceback; all
    others finish. Raises Failure in the end if any is quarantined (unless `refuse` is False, where
    more blocks follow), and at once if the disk is full. `together`: see settled.
    """
    ledger = meter.ledger
    try:
        done = ledger.done
        for result in settled(client, task, [b for b in blocks if b.index not in done], retries, together):
            if result.crc32c is not None:
                ledger.append(
                    result.block.index,
                    "done",
                    fingerprint=ledger.header.fingerprint,
                    crc32c=result.crc32c,
                    seconds=round(result.seconds, 4),
                    attempt=result.number,
                )
                meter.add(result.block)
            else:
                log.error("%s: block %d set aside: %s", ledger.header.step, result.block.index, result.last_line)
                ledger.append(
                    result.block.index,
                    "quarantined",
                    attempt=result.number,
                    box=result.block.write.pairs,
                    error=result.error,
                )
    finally:
        ledger.sync()
    meter.say()
    if refuse:
        refuse_quarantined(ledger, len(blocks))


def refuse_quarantined(ledger: Ledger, total: int) -> None:
    """Failure, naming the blocks, where any of a step has been set aside."""
    bad = {i: row for i, row in sorted(ledger.rows.items()) if row["state"] == "quarantined"}
    if not bad:
        return
    named = "; ".join(
        f"block {i} at z, y, x {row['box']}: {row['error'].strip().splitlines()[-1]}"
        for i, row in islice(bad.items(), NAMED_IN_ERROR)
    )
    more = f"; and {len(bad) - NAMED_IN_ERROR} more" if len(bad) > NAMED_IN_ERROR else ""
    raise Failure(
        f"{ledger.header.step}: {len(bad)} of {total} blocks failed and were set aside: {named}{more}. "
        f"All others are done and kept. The tracebacks are in {ledger.path}; run again to try only those."
    )
