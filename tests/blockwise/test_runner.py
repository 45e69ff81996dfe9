"""Blocks on a real Dask cluster: bounded, recorded, retried, quarantined, resumed."""

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from distributed import Client

from neurovol.blockwise.attempt import Landing
from neurovol.blockwise.hang import TimeLimit
from neurovol.blockwise.ledger import Header, Ledger, read_ledger
from neurovol.blockwise.runner import Meter, run_blocks
from neurovol.errors import DiskFull, Failure, UserError
from neurovol.geometry import Block, BlockGrid, Numbered, Receipt
from neurovol.progress import Progress

GRID = BlockGrid((7, 13, 31), (4, 4, 8), (4, 4, 8))  # 2 x 4 x 4 = 32 blocks
HEADER = Header("count", {}, total=len(GRID))


@dataclass(frozen=True)
class Touch:
    """Writes one file a block, named by attempt; misbehaves at one block."""

    folder: str
    bad_block: int = -1
    error: str = ""
    heals: bool = False

    def __call__(self, block: Block) -> Receipt:
        earlier = len(list(Path(self.folder).glob(f"{block.index}-*")))
        (Path(self.folder) / f"{block.index}-{earlier}").touch()
        if block.index == self.bad_block and not (self.heals and earlier):
            self.misbehave()
        return Receipt(block.write, block.index + 1000)

    def misbehave(self) -> None:
        if self.error == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise {"user": UserError, "disk": DiskFull, "bug": ZeroDivisionError}[self.error]("slice 12 is torn")


def attempts(folder: Path, index: int) -> int:
    return len(list(folder.glob(f"{index}-*")))


def test_every_block_runs_once_and_is_recorded(client: Client, tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.jsonl", HEADER) as ledger:
        run_blocks(client, Touch(str(tmp_path)), list(GRID), Meter(ledger))
    record = read_ledger(tmp_path / "l.jsonl")
    assert record is not None
    assert record.done == set(range(32))
    assert all(attempts(tmp_path, i) == 1 for i in range(32))
    assert record.rows[31]["crc32c"] == 1031
    assert record.rows[31]["fingerprint"] == HEADER.fingerprint


def test_a_restarted_run_does_only_the_rest(client: Client, tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.jsonl", HEADER) as ledger:
        run_blocks(client, Touch(str(tmp_path)), list(GRID)[:13], Meter(ledger))
    with Ledger(tmp_path / "l.jsonl", HEADER) as ledger:
        run_blocks(client, Touch(str(tmp_path)), list(GRID), Meter(ledger))
        assert ledger.done == set(range(32))
    assert all(attempts(tmp_path, i) == 1 for i in range(32))


def test_a_poisoned_block_is_set_aside_and_all_others_finish(client: Client, tmp_path: Path) -> None:
    with (
        Ledger(tmp_path / "l.jsonl", HEADER) as ledger,
        pytest.raises(Failure, match=r"1 of 32 blocks failed.*block 5 at.*ZeroDivisionError: slice 12 is torn"),
    ):
        run_blocks(client, Touch(str(tmp_path), 5, "bug"), list(GRID), Meter(ledger), retries=2)
    record = read_ledger(tmp_path / "l.jsonl")
    assert record is not None
    assert record.done == set(range(32)) - {5}
    assert record.quarantined == [5]
    assert "Traceback" in record.rows[5]["error"]
    assert attempts(tmp_path, 5) == 3


def test_a_rerun_tries_only_what_was_set_aside(client: Client, tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.jsonl", HEADER) as ledger, pytest.raises(Failure):
        run_blocks(client, Touch(str(tmp_path), 5, "bug"), list(GRID), Meter(ledger), retries=0)
    with Ledger(tmp_path / "l.jsonl", HEADER) as ledger:
        run_blocks(client, Touch(str(tmp_path)), list(GRID), Meter(ledger), retries=0)
    assert attempts(tmp_path, 5) == 2
    assert attempts(tmp_path, 6) == 1


def test_a_block_that_fails_once_succeeds_at_the_second_attempt(client: Client, tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.jsonl", HEADER) as ledger:
        run_blocks(client, Touch(str(tmp_path), 5, "bug", heals=True), list(GRID), Meter(ledger))
        assert ledger.rows[5]["attempt"] == 2


def test_a_users_mistake_is_not_tried_again(client: Client, tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.jsonl", HEADER) as ledger, pytest.raises(Failure, match="slice 12 is torn"):
        run_blocks(client, Touch(str(tmp_path), 5, "user"), list(GRID), Meter(ledger))
    assert attempts(tmp_path, 5) == 1


def test_a_full_disk_ends_the_run_at_once_and_keeps_what_is_done(client: Client, tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.jsonl", HEADER) as ledger, pytest.raises(DiskFull):
        run_blocks(client, Touch(str(tmp_path), 5, "disk"), list(GRID), Meter(ledger))
    record = read_ledger(tmp_path / "l.jsonl")
    assert record is not None
    assert 5 not in record.done
    assert not record.quarantined


def test_a_block_survives_the_death_of_its_worker(client: Client, tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.jsonl", HEADER) as ledger:
        run_blocks(client, Touch(str(tmp_path), 5, "kill", heals=True), list(GRID), Meter(ledger))
        assert ledger.done == set(range(32))


def test_progress_ends_at_the_total(client: Client, tmp_path: Path) -> None:
    said: list[Progress] = []
    with Ledger(tmp_path / "l.jsonl", HEADER) as ledger:
        run_blocks(client, Touch(str(tmp_path)), list(GRID), Meter(ledger, said.append))
    assert (said[0].done, said[-1].done, said[-1].total) == (0, 32, 32)
    assert said[-1].voxels == 7 * 13 * 31
    assert said[-1].workers == len(client.nthreads())
    assert (said[-1].retried, said[-1].set_aside) == (0, 0)


def test_progress_counts_what_was_tried_again_and_what_was_set_aside(client: Client, tmp_path: Path) -> None:
    said: list[Progress] = []
    with Ledger(tmp_path / "l.jsonl", HEADER) as ledger, pytest.raises(Failure):
        run_blocks(client, Touch(str(tmp_path), 5, "bug"), list(GRID), Meter(ledger, said.append), retries=2)
    assert (said[-1].done, said[-1].retried, said[-1].set_aside) == (31, 2, 1)
    assert said[-1].ended
    assert not said[0].ended


def test_a_rerun_begins_with_nothing_set_aside(client: Client, tmp_path: Path) -> None:
    said: list[Progress] = []
    with Ledger(tmp_path / "l.jsonl", HEADER) as ledger, pytest.raises(Failure):
        run_blocks(client, Touch(str(tmp_path), 5, "bug"), list(GRID), Meter(ledger), retries=0)
    with Ledger(tmp_path / "l.jsonl", HEADER) as ledger:
        run_blocks(client, Touch(str(tmp_path)), list(GRID), Meter(ledger, said.append), retries=0)
    assert [(p.done, p.set_aside, p.ended) for p in (said[0], said[-1])] == [(31, 0, False), (32, 0, True)]


@dataclass(frozen=True)
class Doze:
    """Takes long enough for the driver to look twice."""

    def __call__(self, block: Block) -> Receipt:
        time.sleep(3)
        return Receipt(block.write, block.index)


def test_progress_is_said_while_no_block_ends(client: Client, tmp_path: Path) -> None:
    said: list[Progress] = []
    grid = BlockGrid((1, 1, 1), (1, 1, 1), (1, 1, 1))
    with Ledger(tmp_path / "l.jsonl", Header("doze", {}, len(grid))) as ledger:
        looking = TimeLimit(least_s=50.0)  # each second
        run_blocks(client, Doze(), list(grid), Meter(ledger, said.append), limit=looking)
    assert [p for p in said if p.done == 0 and p.workers]


@dataclass(frozen=True)
class Nap:
    """Takes its time."""

    def __call__(self, block: Block) -> Receipt:
        time.sleep(0.002)
        return Receipt(block.write, block.index)


def test_blocks_together_take_no_longer_than_their_workers_had(client: Client, tmp_path: Path) -> None:
    grid = BlockGrid((1, 1, 2000), (1, 1, 1), (1, 1, 1))  # many go to a worker at a time
    start = time.monotonic()
    with Ledger(tmp_path / "l.jsonl", Header("nap", {}, len(grid))) as ledger:
        run_blocks(client, Nap(), Numbered(grid), Meter(ledger))
        assert 2000 * 0.002 <= ledger.rows.seconds <= len(client.nthreads()) * (time.monotonic() - start)


@dataclass(frozen=True)
class Side(Touch):
    """Does blocks together, unless the bad one is among them; notes how many."""

    def begin(self, blocks: Sequence[Block]) -> Landing:
        if len(blocks) == 1:
            return Landing([self(blocks[0])], lambda: None)
        (Path(self.folder) / f"together-{'-'.join(str(b.index) for b in blocks)}").touch()
        if any(b.index == self.bad_block for b in blocks):
            self.misbehave()
        return Landing([Receipt(b.write, b.index + 1000) for b in blocks], lambda: None)


def test_blocks_side_by_side_are_done_together_and_recorded_one_by_one(client: Client, tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.jsonl", HEADER) as ledger:
        run_blocks(client, Side(str(tmp_path)), list(GRID), Meter(ledger), together=3)
        assert {n: row["crc32c"] for n, row in ledger.rows.items()} == {n: n + 1000 for n in range(32)}
        assert all(row["attempt"] == 1 for row in ledger.rows.values())
    # rows of four blocks, three together and one by itself, but towards the end fewer, that no worker waits long
    assert {0: 3, 4: 3, 8: 3}.items() <= _together(tmp_path).items()
    assert attempts(tmp_path, 3) == 1
    assert attempts(tmp_path, 2) == 0
    assert attempts(tmp_path, 30) == attempts(tmp_path, 31) == 1


def _together(folder: Path) -> dict[int, int]:
    """How many blocks were done together, by the first of them."""
    groups = [file.name.split("-")[1:] for file in folder.glob("together-*")]
    return {int(group[0]): len(group) for group in groups}


@pytest.mark.parametrize("error", ["bug", "user"])
def test_of_blocks_that_fail_together_only_the_bad_one_is_set_aside(client: Client, tmp_path: Path, error: str) -> None:
    with Ledger(tmp_path / "l.jsonl", HEADER) as ledger:
        with pytest.raises(Failure, match="1 of 32 blocks failed"):
            run_blocks(client, Side(str(tmp_path), 5, error), list(GRID), Meter(ledger), retries=0, together=4)
        assert ledger.done == set(range(32)) - {5}
    assert attempts(tmp_path, 5) == attempts(tmp_path, 4) == 1
