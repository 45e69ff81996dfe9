"""What a conversion costs, measured by the process that does it: peak memory and processor time."""

from __future__ import annotations

import contextlib
import resource
import threading
from pathlib import Path

import psutil


class Peak:
    """Peak memory in MB of this process and its children, of which a thread takes samples."""

    def __enter__(self) -> Peak:
        self.together, self._stop = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.mb = round(max(_highest_bytes(), self.together) / 1e6)

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._stop.wait(0.2):
            with contextlib.suppress(psutil.Error):  # a child that ended meanwhile
                self.together = max(self.together, sum(p.memory_info().rss for p in (me, *me.children(True))))


def _highest_bytes() -> int:
    """Of this process alone, exact. (Its ru_maxrss begins with what the process held that started it.)"""
    return 1024 * int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])


def cpu_seconds() -> float:
    """Of this process and of those of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)
