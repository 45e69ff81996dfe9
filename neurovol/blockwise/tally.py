"""What of a submission people want to see: counts while it runs, and in a file, where asked for, block by block."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from logging.handlers import RotatingFileHandler
from pathlib import Path

from neurovol.blockwise.attempt import Attempt, Order
from neurovol.blockwise.marker import Marker

ASKED = "NEUROVOL_BLOCK_LOG"  # environment of the driver: anything but nothing or 0
MOST_BYTES = 5_000_000  # of the file and the one before it together


def _silent() -> logging.Logger:
    return logging.Logger("blocks", logging.CRITICAL + 1)


class _File(RotatingFileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """A log fails no run: on a full disk it is left out."""


@contextmanager
def block_log(ledger: Path) -> Iterator[logging.Logger]:
    """A log beside a step's ledger, which goes on where an earlier run's ended; one that is silent if none is asked."""
    log = _silent()
    if os.environ.get(ASKED, "0") in ("", "0"):
        yield log
        return
    file = _File(ledger.with_name(f"{ledger.name}.blocks.log"), maxBytes=MOST_BYTES // 2, backupCount=1)
    file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.setLevel(logging.DEBUG)
    log.addHandler(file)
    try:
        yield log
    finally:
        log.removeHandler(file)
        file.close()


@dataclass
class Tally:
    """Kept current by a submission; one may be kept over several, as a step has one for each level."""

    workers: int | None = None  # now; None before they are counted
    retried: int = 0  # times that a block was tried again
    log: logging.Logger = field(default_factory=_silent)

    @property
    def detailed(self) -> bool:
        return self.log.isEnabledFor(logging.DEBUG)

    def given_out(self, order: Order) -> None:
        if self.detailed:
            for group in order.groups:
                for block in group:
                    self.log.debug("block %d given out, attempt %d", block.index, order.number)

    def at_work(self, marker: Marker) -> None:
        """Of blocks that take a second or more: others have ended before the driver looks."""
        self.log.debug("block %s begun by %s (process %d)", marker.block, marker.worker, marker.pid)

    def again(self, index: int, number: int, worker: str, why: str) -> None:
        self.retried += 1
        self.log.debug("block %d failed at attempt %d%s, to be tried again: %s", index, number, _by(worker), why)

    def ended(self, result: Attempt) -> None:
        """For good: done, or set aside."""
        if not self.detailed:
            return
        about = f"block {result.block.index}", f"attempt {result.number}{_by(result.worker)}"
        if result.receipt is None:
            self.log.debug("%s set aside after %s: %s", *about, result.last_line)
        elif result.receipt.skipped is not None:
            self.log.debug("%s skipped at %s: %s", *about, result.receipt.skipped)
        else:
            self.log.debug("%s done in %.3f s, %s", about[0], result.seconds, about[1])


def _by(worker: str) -> str:
    return f" by {worker}" if worker else ""
