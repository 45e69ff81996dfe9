"""The durable record of a step: what it was made from, which blocks are done, whether it is finished.

JSON lines, each closed by the crc32c of what stands before it. The first line is the header, which
spells out the inputs; a last line says that the step is finished. Only the driver writes, and only
after the data that a row speaks of is durable. A torn last line (power cut, kill -9) is dropped.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Set
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import google_crc32c

from neurovol.blockwise.rows import Rows
from neurovol.errors import Failure, UserError

Json = Any  # what json.dumps accepts

# What a power cut may undo: an fsync costs about a millisecond on a good disk, tens on a network one. A driver that
# is killed loses nothing, as every row goes to the system at once.
SYNC_ROWS = 1024
SYNC_SECONDS = 1.0

LOCK_SECONDS = 1.0  # for so long a driver tries: who asks `is_written` holds the lock for an instant


def canonical(value: Json) -> str:
    """JSON that is the same text for the same value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def fingerprint(inputs: Json) -> str:
    """Hash of all that determines a result: 16 hexadecimal digits of SHA-256.

    >>> fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    True
    """
    return hashlib.sha256(canonical(inputs).encode()).hexdigest()[:16]


def differences(old: dict[str, Json], new: dict[str, Json]) -> tuple[str, ...]:
    """What changed between two sets of inputs, as a user would say it.

    >>> differences({"train.alpha": 0.3}, {"train.alpha": 0.5})
    ('train.alpha 0.3 → 0.5',)
    >>> differences({"a image": fingerprint(1)}, {"a image": fingerprint(2)})
    ('a image changed',)
    """
    keys = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))
    return tuple(_difference(key, old.get(key), new.get(key)) for key in keys)


def _difference(key: str, old: Json, new: Json) -> str:
    if _is_fingerprint(old) and _is_fingerprint(new):
        return f"{key} changed"
    return f"{key} {_shown(old)} → {_shown(new)}"


def _is_fingerprint(value: Json) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{16}", value) is not None


def _shown(value: Json) -> str:
    text = "nothing" if value is None else canonical(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


@dataclass(frozen=True)
class Header:
    """What a step is made from, and what a timed trial chose for it."""

    step: str
    inputs: dict[str, Json]
    total: int  # blocks or steps
    chosen: dict[str, Json] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.inputs)


@dataclass(frozen=True)
class Record:
    """A ledger as read: rows by their number (the last row of a number counts)."""

    header: Header
    rows: Rows
    finished: dict[str, Json] | None
    valid_bytes: int

    @property
    def done(self) -> Set[int]:
        return self.rows.done

    @property
    def quarantined(self) -> list[int]:
        return self.rows.quarantined

    @property
    def seconds(self) -> float:
        return self.rows.seconds


def _line(value: Json) -> bytes:
    body = canonical(value)
    return f'{body[:-1]},"crc":"{google_crc32c.value(body.encode()):08x}"}}\n'.encode()


def _checked(line: bytes) -> dict[str, Json] | None:
    """The value of a whole line, None of a torn one."""
    if not line.endswith(b'"}\n') or b',"crc":"' not in line:
        return None
    body, _, crc = line.rpartition(b',"crc":"')
    body += b"}"
    if f"{google_crc32c.value(body):08x}".encode() != crc.removesuffix(b'"}\n'):
        return None
    value: dict[str, Json] = json.loads(body)
    return value


def _lines(path: Path) -> Iterator[tuple[dict[str, Json], int]]:
    """Whole lines and the offset behind each; a torn tail is left out, a torn middle is an error."""
    offset = 0
    torn_at: int | None = None
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            value = _checked(line)
            if torn_at is not None and value is not None:
                raise Failure(
                    f"{path}: line {torn_at} is damaged though later lines are whole, so the disk or an editor "
                    "changed it; what it recorded is unknown. Build the step anew with --redo."
                )
            if value is None:
                torn_at = torn_at or number
                continue
            offset += len(line)
            yield value, offset


def read_ledger(path: Path) -> Record | None:
    """The record at `path`, or None where there is none (or not even a whole header)."""
    if not path.exists():
        return None
    header: Header | None = None
    rows = Rows("")
    finished: dict[str, Json] | None = None
    valid = 0
    for value, offset in _lines(path):
        valid = offset
        if header is None:
            header = Header(**value["header"])
            rows = Rows(header.fingerprint)
        elif "finished" in value:
            finished = value["finished"]
        else:
            rows.add(value)
    return None if header is None else Record(header, rows, finished, valid)


def is_written(path: Path) -> bool:
    """Whether a driver has the ledger at `path` open just now."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _locked(path: Path) -> BinaryIO:
    """The file at `path`, to be written by no one else; a UserError where another driver keeps it."""
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        file = path.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _lies_at(path, file):
                return file
        except BlockingIOError:
            pass
        file.close()
        if time.monotonic() > deadline:
            raise UserError(f"{path}: another run is writing this step; wait for it, or stop it first")
        time.sleep(0.02)


def _lies_at(path: Path, file: BinaryIO) -> bool:
    """Whether an open file is still the one at `path`: who had it before may have put it elsewhere as it was done."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


class Ledger:
    """A ledger open for writing by one driver; a second one is refused.

    Opening continues the record there is if its inputs are the same, and refuses otherwise.
    """

    def __init__(self, path: Path, header: Header) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = _locked(path)
        record = read_ledger(path)
        if record is not None and record.header.inputs != header.inputs:
            self._file.close()
            changed = "; ".join(differences(record.header.inputs, header.inputs))
            raise UserError(f"{path}: was begun with other inputs ({changed}); build it anew with --redo")
        self._file.truncate(record.valid_bytes if record else 0)
        self.header = record.header if record else header
        self.fingerprint = self.header.fingerprint
        self.rows = record.rows if record else Rows(self.fingerprint)
        self.finished = record.finished if record else None
        self._unsynced = 0
        self._began = self._synced_at = time.monotonic()
        self._earlier_s = record.seconds if record else 0.0
        if record is None:
            self._write({"header": vars(header)})
            self.sync()
            _sync_folder(path.parent)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.sync()
        self._file.close()

    @property
    def done(self) -> Set[int]:
        return self.rows.done

    def append(self, number: int, state: str, **values: Json) -> None:
        """Record one block or step; durable after the next sync."""
        row = {"n": number, "state": state, **values}
        self.rows.add(row)
        self._write(row)
        if self._unsynced >= SYNC_ROWS or time.monotonic() - self._synced_at > SYNC_SECONDS:
            self.sync()

    def sync_late_rows(self) -> None:
        """To be called now and then where rows are few: none stays long without being durable."""
        if self._unsynced and time.monotonic() - self._synced_at > SYNC_SECONDS:
            self.sync()

    def finish(self, **values: Json) -> None:
        """The completion mark: everything of the step is done and durable.

        Seconds are the wall's since the ledger was opened, and the blocks' own of runs before.
        """
        self.sync()
        seconds = round(self._earlier_s + time.monotonic() - self._began, 3)
        self.finished = {"seconds": seconds, **values}
        self._write({"finished": self.finished})
        self.sync()

    def _write(self, value: Json) -> None:
        self._file.write(_line(value))
        self._file.flush()
        self._unsynced += 1

    def sync(self) -> None:
        """Make all rows so far durable."""
        os.fsync(self._file.fileno())
        self._unsynced, self._synced_at = 0, time.monotonic()


def _sync_folder(folder: Path) -> None:
    """Make a new file's name durable, not only its bytes."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
