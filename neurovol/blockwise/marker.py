"""Start markers: which block a worker is at, in a small file of its own that outlives it.

When a worker dies, Dask blames every task that was waiting on it. The marker tells the one that was running.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
        self._held = -1
        self._file = Path(folder, f"{socket.gethostname()}-{os.getpid()}-{threading.get_native_id()}")

    @classmethod
    def of(cls, folder: str, worker: str) -> Slot:
        """This thread's."""
        mine: Slot | None = getattr(_mine, "slot", None)
        if mine is None or mine.folder != folder:
            mine = _mine.slot = cls(folder, worker)
        return mine

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep the file open meanwhile, for many small blocks.

        Never for longer: over NFS other machines see what was written once it is closed, and a file that is removed
        while it is open stays, with its folder.
        """
        with suppress(OSError):
            self._held = self._open()
        try:
            yield
        finally:
            if self._held >= 0:
                os.close(self._held)
            self._held = -1

    def write(self, token: str, block: int | None) -> None:
        """Tell that this thread is at a block, the first of those it computes together, or at none."""
        if self.folder:
            self._count += block is not None
            at = "null" if block is None else block
            record = f'{{"count":{self._count},"token":"{token}","block":{at},{self._about}}}'
            with suppress(OSError):  # a marker serves to blame, and fails no block
                handle = self._held if self._held >= 0 else self._open()
                try:
                    os.pwrite(handle, record.encode().ljust(WIDTH), 0)
                finally:
                    if handle != self._held:
                        os.close(handle)

    def asked_to_stop(self) -> bool:
        """Whether the driver wants no further block begun."""
        return self._stop is not None and self._stop.exists()

    def _open(self) -> int:
        return os.open(self._file, os.O_WRONLY | os.O_CREAT, 0o600) if self.folder else -1


def read_markers(folder: Path) -> list[Marker]:
    """All markers in a folder, those of dead workers too; one that is being written is left out."""
    found = []
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        with suppress(OSError, ValueError, KeyError):
            record = json.loads(file.read_bytes())
            found.append(Marker(file, **record))
    return found
