"""What becomes of blocks when workers die, hang or are stopped: the guilty block is named, all others are done."""

import ctypes
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from distributed import Client

from neurovol.blockwise.hang import TimeLimit
from neurovol.blockwise.ledger import Header, Ledger
from neurovol.blockwise.runner import Meter, run_blocks
from neurovol.errors import Failure
from neurovol.geometry import Block, BlockGrid, Numbered, Receipt

GRID = BlockGrid((4, 40, 200), (4, 4, 8), (4, 4, 8))  # 1 x 10 x 25 = 250 blocks
HEADER = Header("count", {}, total=len(GRID))
pytestmark = pytest.mark.timeout(60)
LIMIT = TimeLimit(times=10.0, least_s=1.5, first_s=3.0)


@dataclass(frozen=True)
class Sick:
    """Does nothing but note that it ran; ends badly at some blocks, each time or only the first time."""

    folder: str
    sick: tuple[int, ...]
    how: str
    heals: bool = False

    def __call__(self, block: Block) -> Receipt:
        with (Path(self.folder) / f"{block.index}").open("a") as file:
            file.write("*")
        if block.index in self.sick and not (self.heals and self.runs(block.index) > 1):
            self.end()
        return Receipt(block.write, block.index)

    def runs(self, index: int) -> int:
        return (Path(self.folder) / f"{index}").stat().st_size

    def end(self) -> None:
        if self.how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "segfault":
            ctypes.string_at(0)
        time.sleep(3600)


@pytest.mark.parametrize("how", ["killed", "segfault", pytest.param("hangs", marks=pytest.mark.slow)])
def test_only_the_block_that_kills_its_workers_is_set_aside(client: Client, tmp_path: Path, how: str) -> None:
    task = Sick(str(tmp_path), (77,), how)
    with Ledger(tmp_path / "l.jsonl", HEADER) as ledger:
        with pytest.raises(Failure, match=r"1 of 250 blocks failed.*block 77.*its worker died while computing it"):
            run_blocks(client, task, Numbered(GRID), Meter(ledger), retries=1, limit=LIMIT)
        assert ledger.done == set(range(250)) - {77}
        assert ("it hung" in ledger.rows[77]["error"]) == (how == "hangs")
        assert all(ledger.rows[n]["attempt"] == 1 for n in ledger.done)  # no other is blamed
    assert task.runs(77) == 3  # twice among others, once by itself
    assert not list(tmp_path.glob("*.running"))


@pytest.mark.parametrize("how", ["killed", "hangs"])
def test_blocks_that_kill_a_worker_once_are_done_at_their_next_attempt(
    client: Client, tmp_path: Path, how: str
) -> None:
    sick = (0, 40, 41, 249)
    with Ledger(tmp_path / "l.jsonl", HEADER) as ledger:
        run_blocks(client, Sick(str(tmp_path), sick, how, heals=True), Numbered(GRID), Meter(ledger), limit=LIMIT)
        assert ledger.done == set(range(250))
        assert {n for n in ledger.done if ledger.rows[n]["attempt"] > 1} == set(sick)


def test_a_second_run_by_the_same_workers_knows_as_well_where_they_are(client: Client, tmp_path: Path) -> None:
    for sick in ((), (3, 200)):
        with Ledger(tmp_path / "l.jsonl", HEADER) as ledger:
            blocks = Numbered(GRID, places=range(len(GRID)) if sick else range(100, 150))
            run_blocks(client, Sick(str(tmp_path), sick, "hangs", heals=True), blocks, Meter(ledger), limit=LIMIT)
    assert ledger.done == set(range(250))
    assert {n for n in ledger.done if ledger.rows[n]["attempt"] > 1} == {3, 200}
