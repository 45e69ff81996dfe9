"""Start markers: which block a worker is at, in a small file of its own that outlives it.

When a worker dies, Dask blames every task that was waiting on it. The marker tells the one that was running.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

WIDTH = 512  # bytes, rewritten in place at every start
STOP = "stop"  # a file of this name asks workers to begin no further block

_mine = threading.local()


@dataclass(frozen=True)
class Marker:
    """What a computing thread of a worker is at."""

    file: Path
    count: int  # of the thread's starts, which tells one from the next
    token: str  # of the future
    block: int | None  # the first of those that are computed together; None between two
    pid: int
    worker: str  # its address


class Slot:
    """The marker file of one computing thread; of no folder, one that tells nothing."""

    def __init__(self, folder: str, worker: str) -> None:
        self.folder = folder
        self._stop = Path(folder, STOP) if folder else None
        self._about = f'"pid":{os.getpid()},"worker":{json.dumps(worker)}'
        self._count = 0
        self._handle = -1
        self._file = Path(folder, f"{socket.gethostname()}-{os.getpid()}-{threading.get_native_id()}")
        with suppress(OSError):  # a marker serves to blame, and fails no block
            self._handle = os.open(self._file, os.O_WRONLY | os.O_CREAT, 0o600) if folder else -1

    @classmethod
    def of(cls, folder: str, worker: str) -> Slot:
        """This thread's, kept while its file is there: the next run of a step has a new folder of the same name."""
        held: Slot | None = getattr(_mine, "slot", None)
        if held is None or held.folder != folder or (folder and not held._file.exists()):
            if held is not None:
                held.close()
            held = _mine.slot = cls(folder, worker)
        return held

    def write(self, token: str, block: int | None) -> None:
        """Tell that this thread is at a block, the first of those it computes together, or at none."""
        if self._handle >= 0:
            self._count += block is not None
            at = "null" if block is None else block
            record = f'{{"count":{self._count},"token":"{token}","block":{at},{self._about}}}'
            with suppress(OSError):
                os.pwrite(self._handle, record.encode().ljust(WIDTH), 0)

    def asked_to_stop(self) -> bool:
        """Whether the driver wants no further block begun."""
        return self._stop is not None and self._stop.exists()

    def close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)


def read_markers(folder: Path) -> list[Marker]:
    """All markers in a folder, those of dead workers too; one that is being written is left out."""
    found = []
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        with suppress(OSError, ValueError, KeyError):
            record = json.loads(file.read_bytes())
            found.append(Marker(file, **record))
    return found
