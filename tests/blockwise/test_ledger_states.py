"""Any interleaving of done, failed, torn and resumed: a ledger says of each block what was last made durable."""

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from neurovol.blockwise.ledger import Header, Ledger, Record, read_ledger

HEADER = Header("segment slab-07", {"weights": "0123456789abcdef"}, total=40)
numbers = st.integers(0, 39)


class Life(RuleBasedStateMachine):
    """A ledger, and a plain list of what was written to it with the offset behind each line."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "l.jsonl"
        self.ledger = Ledger(self.path, HEADER)
        self.header_bytes = self.path.stat().st_size
        self.written: list[tuple[int, dict[str, Any]]] = []

    def _wrote(self, row: dict[str, Any]) -> None:
        self.written.append((self.path.stat().st_size, row))

    def _append(self, n: int, state: str, **values: Any) -> None:
        self.ledger.append(n, state, **values)
        self._wrote({"n": n, "state": state, **values})

    @rule(n=numbers, crc32c=st.integers(0, 2**32 - 1), ms=st.integers(0, 10**7), attempt=st.integers(1, 9))
    def done(self, n: int, crc32c: int, ms: int, attempt: int) -> None:
        fingerprint = HEADER.fingerprint
        self._append(n, "done", fingerprint=fingerprint, crc32c=crc32c, seconds=ms / 1000, attempt=attempt)

    @rule(n=numbers, why=st.sampled_from(["no tissue", "outside the boxes"]), fingerprint=st.booleans())
    def skipped(self, n: int, why: str, fingerprint: bool) -> None:
        of = {"fingerprint": HEADER.fingerprint} if fingerprint else {}
        self._append(n, "done", **of, crc32c=0, seconds=0.0, attempt=1, skipped=why)

    @rule(n=numbers)
    def failed(self, n: int) -> None:
        self._append(n, "quarantined", attempt=3, error="Traceback …\nZeroDivisionError: slice 12")

    @rule(seconds=st.integers(1, 99))
    def finished(self, seconds: int) -> None:
        self.ledger.finish(seconds=seconds)
        self._wrote({"finished": {"seconds": seconds}})

    @rule(cut=st.integers(0, 500))
    def killed_with_a_torn_tail(self, cut: int) -> None:
        """A power cut takes some of the last bytes; the next driver goes on with what is whole."""
        self.ledger._file.close()
        size = max(self.header_bytes, self.path.stat().st_size - cut)
        with self.path.open("r+b") as file:
            file.truncate(size)
        self.written = [(end, row) for end, row in self.written if end <= size]
        self.ledger = Ledger(self.path, HEADER)

    @rule()
    def closed_and_resumed(self) -> None:
        with self.ledger:
            pass
        self.ledger = Ledger(self.path, Header(HEADER.step, HEADER.inputs, HEADER.total, {"window": [9, 9, 9]}))

    @invariant()
    def what_is_held_and_what_is_read_are_what_was_written(self) -> None:
        rows = {row["n"]: row for _, row in self.written if "n" in row}
        marks = [row["finished"] for _, row in self.written if "finished" in row]
        read = read_ledger(self.path)
        assert read is not None
        held = Record(self.ledger.header, self.ledger.rows, self.ledger.finished, 0)
        for record in (held, read):
            assert dict(record.rows) == rows
            assert record.done == {n for n, row in rows.items() if row["state"] == "done"}
            assert len(record.done) == sum(row["state"] == "done" for row in rows.values())
            assert record.rows.skipped == Counter(row["skipped"] for row in rows.values() if "skipped" in row)
            assert record.quarantined == sorted(n for n, row in rows.items() if row["state"] == "quarantined")
            assert abs(record.seconds - sum(row.get("seconds", 0.0) for row in rows.values())) < 1e-6
            assert record.finished == (marks[-1] if marks else None)

    def teardown(self) -> None:
        self.ledger._file.close()
        self.folder.cleanup()


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
