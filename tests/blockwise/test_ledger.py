"""The ledger is the truth: checksummed, resumable, never mixed."""

import fcntl
import threading
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neurovol.blockwise.ledger import Header, Ledger, differences, is_written, read_ledger
from neurovol.errors import Failure, UserError

HEADER = Header("convert slab-07", {"convert.chunk": [1, 2, 3]}, total=7, chosen={"precision": "bf16"})


def filled(path: Path, rows: int) -> bytes:
    with Ledger(path, HEADER) as ledger:
        for i in range(rows):
            ledger.append(i, "done", crc32c=i * 1000003, seconds=0.5)
    return path.read_bytes()


def test_what_was_appended_is_read_back(tmp_path: Path) -> None:
    filled(tmp_path / "l.jsonl", 3)
    record = read_ledger(tmp_path / "l.jsonl")
    assert record is not None
    assert record.header == HEADER
    assert record.done == {0, 1, 2}
    assert record.rows[2]["crc32c"] == 2000006
    assert record.finished is None
    assert record.seconds == 1.5


def test_where_there_is_no_ledger_there_is_no_record(tmp_path: Path) -> None:
    assert read_ledger(tmp_path / "l.jsonl") is None


@settings(deadline=None, max_examples=60)
@given(cut=st.integers(1, 400))
def test_a_torn_tail_costs_only_the_torn_rows(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.mktemp("ledger") / "l.jsonl"
    whole = filled(path, 5)
    path.write_bytes(whole[: max(0, len(whole) - cut)])
    survivors = path.read_bytes().count(b"\n") - 1
    with Ledger(path, HEADER) as ledger:
        assert ledger.done == set(range(max(0, survivors)))
        for i in {0, 1, 2, 3, 4} - ledger.done:
            ledger.append(i, "done", crc32c=i * 1000003, seconds=0.5)
    assert path.read_bytes() == whole


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_a_flipped_bit_is_never_believed(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("ledger") / "l.jsonl"
    whole = bytearray(filled(path, 3))
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(whole)
    try:
        record = read_ledger(path)
    except Failure:
        return
    if record is not None:
        assert record.header == HEADER
        assert all(record.rows[i]["crc32c"] == i * 1000003 for i in record.rows)


def test_a_ledger_with_other_inputs_is_refused_and_says_what_changed(tmp_path: Path) -> None:
    filled(tmp_path / "l.jsonl", 3)
    other = Header(HEADER.step, {"convert.chunk": [1, 2, 4]}, total=7)
    with pytest.raises(UserError, match=r"convert.chunk \[1,2,3\] → \[1,2,4\]"):
        Ledger(tmp_path / "l.jsonl", other)


def test_a_resumed_step_keeps_what_a_trial_chose(tmp_path: Path) -> None:
    filled(tmp_path / "l.jsonl", 3)
    with Ledger(tmp_path / "l.jsonl", Header(HEADER.step, HEADER.inputs, 7, {"precision": "fp32"})) as ledger:
        assert ledger.header.chosen == {"precision": "bf16"}


def test_two_drivers_cannot_write_one_ledger(tmp_path: Path) -> None:
    with (
        Ledger(tmp_path / "l.jsonl", HEADER),
        pytest.raises(UserError, match="another run is writing"),
    ):
        Ledger(tmp_path / "l.jsonl", HEADER)


def test_a_ledger_is_written_while_a_driver_has_it_open_and_only_then(tmp_path: Path) -> None:
    path = tmp_path / "l.jsonl"
    assert not is_written(path)
    with Ledger(path, HEADER):
        assert is_written(path)
    assert not is_written(path)


def test_a_driver_waits_for_whoever_looks_and_for_one_that_ends_just_then(tmp_path: Path) -> None:
    filled(tmp_path / "l.jsonl", 3)
    with (tmp_path / "l.jsonl").open("rb") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        threading.Timer(0.2, fcntl.flock, (looking, fcntl.LOCK_UN)).start()
        with Ledger(tmp_path / "l.jsonl", HEADER) as ledger:
            assert ledger.done == {0, 1, 2}


def test_a_ledger_that_is_put_elsewhere_meanwhile_is_not_written_there(tmp_path: Path) -> None:
    beside, path = tmp_path / "l.jsonl.redo", tmp_path / "l.jsonl"
    whole = filled(beside, 3)

    def end(first: BinaryIO) -> None:
        beside.rename(path)
        first.close()

    first = beside.open("ab")
    fcntl.flock(first, fcntl.LOCK_EX)
    threading.Timer(0.2, end, (first,)).start()
    with Ledger(beside, HEADER) as ledger:
        assert not ledger.done
    assert path.read_bytes() == whole


def test_the_finish_mark_is_read_back(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.jsonl", HEADER) as ledger:
        ledger.finish(seconds=3.5)
    record = read_ledger(tmp_path / "l.jsonl")
    assert record is not None
    assert record.finished == {"seconds": 3.5}


def test_differences_name_what_appeared_and_what_went() -> None:
    assert differences({"a": 1, "b": 2}, {"b": 2, "c": "x"}) == ("a 1 → nothing", 'c nothing → "x"')
