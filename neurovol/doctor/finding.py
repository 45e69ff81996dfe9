"""What a check found, and how a check is kept from raising or taking for ever."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from neurovol.errors import Failure, UserError

Level = Literal["ok", "warn", "fail", "skipped"]


@dataclass(frozen=True)
class Finding:
    """One line of what the doctor says; `way_out` where there is something to mend."""

    level: Level
    name: str
    text: str
    way_out: str = ""

    @property
    def line(self) -> str:
        """
        >>> Finding("fail", "store", "/data is full", "free some of it").line
        'fail     store        /data is full → free some of it'
        """
        text = " ".join(self.text.split())  # what others say may have lines of its own
        return f"{self.level:<8} {self.name:<12} {text}" + (f" → {self.way_out}" if self.way_out else "")


class Overtime(Exception):
    """Something took longer than it may."""


def examined(name: str, seconds: float, check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """What a check finds; where it raises, or takes longer than it may, that is found as well."""
    found: list[Finding] = []
    try:
        with limit(seconds):
            found += check()
    except Overtime:
        found.append(Finding("fail", name, f"gave no answer within {seconds:.0f} s", "see what it waits for"))
    except (UserError, Failure) as error:  # these say their way out themselves
        found.append(Finding("fail", name, str(error)))
    except Exception as error:
        text = f"could not be looked at: {type(error).__name__}: {error}"
        found.append(Finding("fail", name, text, "mend what that says; run again with -v to see more"))
    return found


@contextmanager
def limit(seconds: float) -> Iterator[None]:
    """Raise Overtime in whatever the main thread then does; another thread has no limit. One limit may lie in another.

    A timer that runs already, as a test runner's, goes on afterwards with what is left to it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(*_: Any) -> None:
        raise Overtime

    began, before = time.monotonic(), signal.getsignal(signal.SIGALRM)
    left, _ = signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(0.01, left - (time.monotonic() - began)))
