"""Rows of a million blocks in memory: what each costs, and that what is kept small comes back whole."""

import json
import tracemalloc
from typing import Any

import pytest

from neurovol.blockwise.rows import Rows

OURS = "0123456789abcdef"
SKIPPED = {"skipped": "no tissue"}


def row(n: int, **others: Any) -> dict[str, Any]:
    plain = {"n": n, "state": "done", "fingerprint": OURS, "crc32c": n * 1000003, "seconds": n / 8, "attempt": 1}
    return plain | others


@pytest.mark.parametrize("others", [{}, SKIPPED], ids=["done", "skipped"])
def test_a_row_takes_21_bytes(others: dict[str, Any]) -> None:
    assert 21 <= bytes_a_row(others) < 21 * 1.15  # arrays grow by an eighth at a time


def bytes_a_row(others: dict[str, Any]) -> float:
    rows, count = Rows(OURS), 10_000
    tracemalloc.start(10)
    for n in range(count):
        rows.add(json.loads(json.dumps(row(n, **others))))  # as they are read, with strings of their own
    here = tracemalloc.Filter(True, __file__, all_frames=True)  # other threads of the tests allocate meanwhile
    held = sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces([here]).traces)
    tracemalloc.stop()
    assert len(rows) == len(rows.done) == count
    return held / count


def test_a_skipped_row_comes_back_with_its_reason() -> None:
    rows = Rows(OURS)
    for n, others in enumerate([SKIPPED, {}, {"skipped": "set aside"}, SKIPPED]):
        rows.add(row(n, **others))
    assert rows[0] == row(0, skipped="no tissue")
    assert [rows[n].get("skipped") for n in rows] == ["no tissue", None, "set aside", "no tissue"]
    assert rows.skipped == {"no tissue": 2, "set aside": 1}
    assert rows.done == {0, 1, 2, 3}


def test_a_row_that_replaces_a_skipped_one_counts_alone() -> None:
    rows = Rows(OURS)
    rows.add(row(3, **SKIPPED))
    rows.add({"n": 3, "state": "quarantined", "error": "ZeroDivisionError"})
    assert (rows.done, rows.quarantined, rows.skipped, rows.seconds) == (set(), [3], {}, 0.0)
    rows.add(row(3))
    assert (rows.done, rows.quarantined, rows.skipped, rows.seconds) == ({3}, [], {}, 3 / 8)


def test_more_reasons_than_fit_a_byte_are_all_kept() -> None:
    rows = Rows(OURS)
    written = [row(n, skipped=f"reason {n}") for n in range(400)]
    for one in written:
        rows.add(one)
    assert [rows[n] for n in rows] == written
    assert rows.skipped.total() == len(rows.done) == 400
