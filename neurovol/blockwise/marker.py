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

from distributed import get_worker

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


@dataclass
class _Slot:
    """The file of one computing thread."""

    file: Path
    handle: int
    worker: str
    count: int = 0

    def write(self, token: str, block: int | None) -> None:
        record = {"count": self.count, "token": token, "block": block, "pid": os.getpid(), "worker": self.worker}
        with suppress(OSError):  # a marker serves to blame, and fails no block
            os.pwrite(self.handle, json.dumps(record).encode().ljust(WIDTH), 0)


@contextmanager
def marked(folder: str, worker: str, token: str, block: int) -> Iterator[None]:
    """Tell that this thread is at a block, until the end of the `with`; nothing where no folder is given."""
    slot = _slot(Path(folder), worker) if folder else None
    if slot is None:
        yield
        return
    slot.count += 1
    slot.write(token, block)
    try:
        yield
    finally:
        slot.write(token, None)


def _slot(folder: Path, worker: str) -> _Slot | None:
    """This thread's file in a folder; None where it cannot be made."""
    held: _Slot | None = getattr(_mine, "slot", None)
    if held is not None and held.file.parent == folder and held.file.exists():
        return held
    if held is not None:
        os.close(held.handle)
    _mine.slot = None
    file = folder / f"{socket.gethostname()}-{os.getpid()}-{threading.get_native_id()}"
    with suppress(OSError):
        _mine.slot = _Slot(file, os.open(file, os.O_WRONLY | os.O_CREAT, 0o600), worker)
    slot: _Slot | None = _mine.slot
    return slot


def own_address() -> str:
    """Of the worker whose task thread this is."""
    return str(get_worker().address)


def asked_to_stop(folder: str) -> bool:
    """Whether the driver wants no further block begun."""
    return bool(folder) and Path(folder, STOP).exists()


def read_markers(folder: Path) -> list[Marker]:
    """All markers in a folder, those of dead workers too; one that is being written is left out."""
    found = []
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        with suppress(OSError, ValueError, KeyError):
            record = json.loads(file.read_bytes())
            found.append(Marker(file, **record))
    return found
