"""The rows of a ledger by their number: a million blocks in tens of megabytes, looked up in no time."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Set
from enum import IntEnum
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")
Row = dict[str, Any]  # a line of a ledger, without its checksum

_PLAIN = frozenset({"n", "state", "fingerprint", "crc32c", "seconds", "attempt"})
_WITH_REASON = _PLAIN | {"skipped"}
_NONE, _DONE, _OTHER, _SKIPPED = range(4)  # from _SKIPPED on: done for nothing, by the place of the reason
_MOST_REASONS = 256 - _SKIPPED  # what is left of a byte; there is one, or a few


class Outcome(IntEnum):
    """What became of a block."""

    NOT_YET = 0
    DONE = 1
    SKIPPED = 2
    SLOW = 3  # done, in much more time than others: whoever compares them says so
    SET_ASIDE = 4


_OUTCOMES = np.full(256, Outcome.SKIPPED, np.uint8)  # by kind; rows that are kept as they are say it themselves
_OUTCOMES[[_NONE, _DONE, _OTHER]] = Outcome.NOT_YET, Outcome.DONE, Outcome.NOT_YET


class Rows(Mapping[int, Row]):
    """The last row of each number.

    Rows of blocks that are done or skipped and have nothing to add are kept in 21 bytes each, by their number, and
    each reason for skipping once; all others as they are.
    """

    def __init__(self, fingerprint: str) -> None:
        self._fingerprint = fingerprint
        self._kind = bytearray()
        self._crc32c, self._seconds, self._attempt = array("Q"), array("d"), array("I")
        self._others: dict[int, Row] = {}
        self._reasons: list[str] = []
        self.seconds = 0.0  # of all rows
        self._done = 0

    def add(self, row: Row) -> None:
        """Take a row in place of an earlier one of its number."""
        n = int(row["n"])
        self._forget(n)
        self._grow(n)
        self.seconds += row.get("seconds", 0.0)
        self._done += row["state"] == "done"
        self._kind[n] = kind = self._kind_of(row)
        if kind != _OTHER:
            self._crc32c[n], self._seconds[n], self._attempt[n] = row["crc32c"], row["seconds"], row["attempt"]
        else:
            self._others[n] = row

    def _kind_of(self, row: Row) -> int:
        if row["state"] != "done" or row.get("fingerprint") != self._fingerprint:
            return _OTHER
        if row.keys() == _PLAIN:
            return _DONE
        if row.keys() != _WITH_REASON or not isinstance(row["skipped"], str):
            return _OTHER
        if row["skipped"] not in self._reasons:
            if len(self._reasons) == _MOST_REASONS:
                return _OTHER
            self._reasons.append(row["skipped"])
        return _SKIPPED + self._reasons.index(row["skipped"])

    def _forget(self, n: int) -> None:
        if n in self:
            earlier = self[n]
            self.seconds -= earlier.get("seconds", 0.0)
            self._done -= earlier["state"] == "done"
            self._others.pop(n, None)

    def _grow(self, n: int) -> None:
        more = n + 1 - len(self._kind)
        if more > 0:
            self._kind.extend(bytes(more))
            for values in (self._crc32c, self._seconds, self._attempt):
                values.frombytes(bytes(more * values.itemsize))

    def __getitem__(self, n: int) -> Row:
        if n not in self:
            raise KeyError(n)
        kind = self._kind[n]
        if kind == _OTHER:
            return self._others[n]
        row = {
            "n": n,
            "state": "done",
            "fingerprint": self._fingerprint,
            "crc32c": self._crc32c[n],
            "seconds": self._seconds[n],
            "attempt": self._attempt[n],
        }
        return row if kind == _DONE else row | {"skipped": self._reasons[kind - _SKIPPED]}

    def __contains__(self, n: object) -> bool:
        return isinstance(n, int) and 0 <= n < len(self._kind) and self._kind[n] != _NONE

    def __iter__(self) -> Iterator[int]:
        return (n for n, kind in enumerate(self._kind) if kind != _NONE)

    def __len__(self) -> int:
        return len(self._kind) - self._kind.count(_NONE)

    @property
    def done(self) -> Done:
        """The numbers of what is done: a view, which goes with the rows."""
        return Done(self)

    @property
    def quarantined(self) -> list[int]:
        return sorted(n for n, row in self._others.items() if row["state"] == "quarantined")

    def outcomes(self, count: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """What became of the first `count` blocks, and the seconds each took: 0 where it is not done.

        Copies what is kept in bytes, which takes milliseconds for a million blocks.
        """
        states, seconds = np.zeros(count, np.uint8), np.zeros(count, np.float32)
        kinds = np.frombuffer(bytes(self._kind), np.uint8)[:count]
        states[: len(kinds)] = _OUTCOMES[kinds]
        seconds[: len(kinds)] = np.frombuffer(self._seconds.tobytes())[:count]
        seconds[states == Outcome.NOT_YET] = 0
        for n, row in self._others.items():
            if n < count and row["state"] == "done":
                states[n] = Outcome.SKIPPED if "skipped" in row else Outcome.DONE
                seconds[n] = row.get("seconds", 0.0)
            elif n < count and row["state"] == "quarantined":
                states[n] = Outcome.SET_ASIDE
        return states, seconds

    @property
    def skipped(self) -> Counter[str]:
        """How many blocks were skipped for each reason."""
        found = Counter({why: self._kind.count(_SKIPPED + place) for place, why in enumerate(self._reasons)})
        found.update(row["skipped"] for row in self._others.values() if "skipped" in row)
        return +found

    def is_done(self, n: int) -> bool:
        return n in self and (self._kind[n] != _OTHER or self._others[n]["state"] == "done")

    @property
    def done_count(self) -> int:
        return self._done


class Done(Set[int]):
    """The numbers of the rows that say done, as a set."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def __contains__(self, n: object) -> bool:
        return isinstance(n, int) and self._rows.is_done(n)

    def __iter__(self) -> Iterator[int]:
        return (n for n in self._rows if self._rows.is_done(n))

    def __len__(self) -> int:
        return self._rows.done_count

    @classmethod
    def _from_iterable(cls, numbers: Iterable[T]) -> Set[T]:  # of what set operations give
        return frozenset(numbers)
