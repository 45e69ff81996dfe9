"""Covers a volume with a task on Dask: bounded futures, receipts only, a ledger that survives the night."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from distributed import Client, Future, as_completed

from neurovol.blockwise.ledger import Ledger
from neurovol.errors import DiskFull, Failure, UserError
from neurovol.geometry import Block, Receipt
from neurovol.progress import Progress, Report, silent

log = logging.getLogger(__name__)

BlockTask = Callable[[Block], Receipt]  # a small frozen picklable object

PER_WORKER = 2  # futures outstanding per thread: one computing, one waiting, so that no worker idles
REPORT_SECONDS = 0.5
NAMED_IN_ERROR = 5


@dataclass(frozen=True)
class Attempt:
    """What a worker says of one attempt at a block: a checksum, or why it failed."""

    block: Block
    number: int
    seconds: float
    crc32c: int | None = None
    error: str | None = None  # the traceback, or a user error's text
    hopeless: bool = False  # trying again cannot help
    disk_full: bool = False

    @property
    def last_line(self) -> str:
        return (self.error or "").strip().rpartition("\n")[2]


def attempt(task: BlockTask, block: Block, number: int) -> Attempt:
    """Run a task on one block, on a worker; never raises, so that Dask does not judge failures."""
    start = time.perf_counter()
    try:
        receipt = task(block)
    except UserError as error:
        return Attempt(block, number, time.perf_counter() - start, error=str(error), hopeless=True)
    except DiskFull as error:
        return Attempt(block, number, time.perf_counter() - start, error=str(error), disk_full=True)
    except Exception:
        return Attempt(block, number, time.perf_counter() - start, error=traceback.format_exc())
    return Attempt(block, number, time.perf_counter() - start, crc32c=receipt.crc32c)


class _Submission:
    """Keeps a bounded number of futures going; retries come before new blocks."""

    def __init__(self, client: Client, task: BlockTask, blocks: Sequence[Block]) -> None:
        self.client = client
        self.task = task
        self.fresh = ((b, 1) for b in blocks)
        self.again: list[tuple[Block, int]] = []
        self.going: dict[Future[Attempt], tuple[Block, int]] = {}
        self.completed = as_completed(raise_errors=False)

    def refill(self) -> None:
        threads = sum(self.client.nthreads().values()) or 1
        while len(self.going) < PER_WORKER * threads:
            block, number = self.again.pop() if self.again else next(self.fresh, (None, 0))
            if block is None:
                return
            future = self.client.submit(attempt, self.task, block, number, pure=False)
            self.going[future] = (block, number)
            self.completed.add(future)

    def __iter__(self) -> Iterator[Attempt]:
        self.refill()
        while self.going:
            future = next(self.completed)
            block, number = self.going.pop(future)
            yield future.result() if future.status == "finished" else _lost(future, block, number)
            future.release()
            self.refill()

    def cancel(self) -> None:
        self.client.cancel(list(self.going))


def _lost(future: Future[Attempt], block: Block, number: int) -> Attempt:
    """An attempt whose worker died under it."""
    return Attempt(block, number, 0.0, error=f"the worker was lost: {future.exception()}")


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


def settled(client: Client, task: BlockTask, blocks: Sequence[Block], retries: int) -> Iterator[Attempt]:
    """The last attempt at each block, as they come: done, or failed for good after `retries` further attempts.

    Raises DiskFull at once, as no block would fare better.
    """
    submission = _Submission(client, task, blocks)
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
) -> None:
    """Run `task` on every block that the meter's ledger does not call done.

    A block that fails is tried again `retries` times, then quarantined with its traceback; all
    others finish. Raises Failure in the end if any is quarantined (unless `refuse` is False, where
    more blocks follow), and at once if the disk is full.
    """
    ledger = meter.ledger
    try:
        for result in settled(client, task, [b for b in blocks if b.index not in ledger.done], retries):
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
