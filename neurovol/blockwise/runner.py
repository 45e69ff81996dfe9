"""Covers a volume with a task on Dask: bounded futures, receipts only, a ledger that survives the night."""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence, Set
from itertools import islice
from pathlib import Path

from distributed import Client

from neurovol.blockwise.attempt import Attempt, BlockTask
from neurovol.blockwise.hang import TimeLimit
from neurovol.blockwise.ledger import Ledger
from neurovol.blockwise.submission import Submission
from neurovol.blockwise.tally import Tally, block_log
from neurovol.errors import DiskFull, Failure
from neurovol.geometry import Block, Numbered
from neurovol.progress import Progress, Report, silent

log = logging.getLogger(__name__)

REPORT_SECONDS = 0.5
NAMED_IN_ERROR = 5
GRACE_S = 20.0  # that blocks under way have to finish when a run is stopped


class Meter:
    """Counts the blocks and voxels of a step, and reports at a bounded rate; `watch` is called every second or so."""

    def __init__(self, ledger: Ledger, report: Report = silent, watch: Callable[[], object] = int) -> None:
        self.ledger, self.report, self.watch = ledger, report, watch
        self.already = len(ledger.done)
        self.voxels = 0
        self.set_aside = 0
        self.tally = Tally()
        self.start = time.monotonic()
        self.said_at = 0.0
        self.say()

    def add(self, result: Attempt) -> None:
        self.tally.ended(result)
        if result.receipt is None:
            self.set_aside += 1
        else:
            self.voxels += result.block.write.size
        self._say_now_and_then()

    def look(self) -> None:
        """Also while no block ends, so that workers that come and go are seen."""
        self.ledger.sync_late_rows()
        self.watch()
        self._say_now_and_then()

    def _say_now_and_then(self) -> None:
        if time.monotonic() - self.said_at > REPORT_SECONDS:
            self.say()

    def say(self) -> None:
        self.said_at = time.monotonic()
        done, header = len(self.ledger.done), self.ledger.header
        here, seconds = done - self.already, self.said_at - self.start
        self.report(
            Progress(
                header.step,
                done,
                header.total,
                "blocks",
                here,
                seconds,
                self.voxels,
                workers=self.tally.workers,
                retried=self.tally.retried,
                set_aside=self.set_aside,
            )
        )


def settled(
    client: Client,
    task: BlockTask,
    blocks: Sequence[Block],
    retries: int,
    together: int = 1,
    near: Path | None = None,
) -> Iterator[Attempt]:
    """The last attempt at each block, as they come: done, or failed for good after `retries` further attempts.

    Up to `together` blocks side by side along x are given to a TogetherTask at once. Raises DiskFull at once, as no
    block would fare better, and ClusterLost. `near` is a folder that workers on other machines see too: without it they
    cannot tell which block killed one of them.
    """
    with tempfile.TemporaryDirectory(prefix=".neurovol-", dir=near, ignore_cleanup_errors=True) as markers:
        submission = Submission(
            client, task, blocks, len(blocks), markers=Path(markers), retries=retries, together=together
        )
        try:
            for result in submission:
                if result.disk_full:
                    raise DiskFull(result.error)
                yield result
        finally:
            submission.close()


def run_blocks(
    client: Client,
    task: BlockTask,
    blocks: Sequence[Block],
    meter: Meter,
    *,
    retries: int = 2,
    refuse: bool = True,
    together: int = 1,
    limit: TimeLimit | None = None,
) -> None:
    """Run `task` on every block that the meter's ledger does not call done.

    A block that fails is tried again `retries` times, then quarantined with its traceback; all
    others finish. Raises Failure in the end if any is quarantined (unless `refuse` is False, where
    more blocks follow), and at once if the disk is full or the cluster lost. Stopped (Ctrl-C, a cancelled flow), it
    begins nothing more and gives what is under way GRACE_S seconds; stopped twice, it leaves at once.
    `together`: see settled.
    """
    ledger = meter.ledger
    with block_log(ledger.path) as meter.tally.log:
        _run(client, task, blocks, meter, retries, together, limit)
    meter.say()
    if refuse:
        refuse_quarantined(ledger, len(blocks))


def _run(
    client: Client,
    task: BlockTask,
    blocks: Sequence[Block],
    meter: Meter,
    retries: int,
    together: int,
    limit: TimeLimit | None,
) -> None:
    ledger, done = meter.ledger, meter.ledger.done
    markers = ledger.path.with_name(f"{ledger.path.name}.running")
    shutil.rmtree(markers, ignore_errors=True)  # of a driver that was killed
    markers.mkdir(exist_ok=True)
    submission = Submission(
        client,
        task,
        (blocks[place] for place in _places_left(blocks, done)),
        sum(1 for _ in _places_left(blocks, done)),
        markers=markers,
        retries=retries,
        together=together,
        limit=limit,
        look=meter.look,
        tally=meter.tally,
    )
    stopped = False
    try:
        for result in submission:
            _record(ledger, result)
            meter.add(result)
    except BaseException as error:
        stopped = not isinstance(error, Exception)
        if stopped:
            log.warning("stopping: blocks under way have %.0f s to finish; once more leaves at once", GRACE_S)
            for result in submission.drain(GRACE_S):
                _record(ledger, result)
                meter.tally.ended(result)
        raise
    finally:
        submission.close(stopped)
        ledger.sync()
        shutil.rmtree(markers, ignore_errors=True)


def _places_left(blocks: Sequence[Block], done: Set[int]) -> Iterator[int]:
    """Where the blocks lie that are not done; a million that are done need not be made to tell."""
    if isinstance(blocks, Numbered):
        return (place for place in range(len(blocks)) if blocks.number(place) not in done)
    return (place for place, block in enumerate(blocks) if block.index not in done)


def _record(ledger: Ledger, result: Attempt) -> None:
    if result.receipt is not None:
        skipped = {} if result.receipt.skipped is None else {"skipped": result.receipt.skipped}
        ledger.append(
            result.block.index,
            "done",
            fingerprint=ledger.fingerprint,
            crc32c=result.receipt.crc32c,
            seconds=round(result.seconds, 4),
            attempt=result.number,
            **skipped,
        )
        return
    if result.disk_full:
        raise DiskFull(result.error)
    log.error("%s: block %d set aside: %s", ledger.header.step, result.block.index, result.last_line)
    ledger.append(
        result.block.index,
        "quarantined",
        attempt=result.number,
        box=result.block.write.pairs,
        error=result.error,
    )


def refuse_quarantined(ledger: Ledger, total: int) -> None:
    """Failure, naming the blocks, where any of a step has been set aside."""
    bad = {i: ledger.rows[i] for i in ledger.rows.quarantined}
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
