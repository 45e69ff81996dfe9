"""The log of blocks beside a ledger, on a real Dask cluster."""

import logging
import re
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from distributed import Client

from neurovol.blockwise import tally
from neurovol.blockwise.ledger import Header, Ledger
from neurovol.blockwise.runner import Meter, run_blocks
from neurovol.errors import Failure
from neurovol.geometry import Block, BlockGrid, Receipt

GRID = BlockGrid((1, 1, 12), (1, 1, 1), (1, 1, 1))


@dataclass(frozen=True)
class Sick:
    """Fails at one block; takes some seconds at another, and skips a third."""

    def __call__(self, block: Block) -> Receipt:
        if block.index == 5:
            raise ZeroDivisionError("slice 12 is torn")
        if block.index == 7:
            time.sleep(6)  # driver looks every 2.4 s
        return Receipt(block.write, block.index, "no tissue" if block.index == 3 else None)


def ran(client: Client, folder: Path) -> Path:
    """Where a run leaves its log, if it leaves one."""
    with Ledger(folder / "segment.jsonl", Header("segment a", {}, len(GRID))) as ledger, pytest.raises(Failure):
        run_blocks(client, Sick(), list(GRID), Meter(ledger), retries=1)
    return folder / "segment.jsonl.blocks.log"


def test_there_is_no_log_of_blocks_unless_it_is_asked_for(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(tally.ASKED, raising=False)
    assert not ran(client, tmp_path).exists()
    monkeypatch.setenv(tally.ASKED, "0")
    assert not ran(client, tmp_path).exists()


def test_the_log_tells_what_became_of_each_block(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(tally.ASKED, "1")
    said = [line.split(" ", 2)[2] for line in ran(client, tmp_path).read_text().splitlines()]
    assert [line for line in said if re.match("block 5 ", line)] == [
        "block 5 given out, attempt 1",
        *(line for line in said if "block 5 failed at attempt 1 by tcp://" in line and "slice 12 is torn" in line),
        "block 5 given out, attempt 2",
        *(line for line in said if "block 5 set aside after attempt 2 by tcp://" in line and "slice 12" in line),
    ]
    assert sum("block 5 failed" in line or "block 5 set aside" in line for line in said) == 2
    assert any(re.fullmatch(r"block 7 begun by tcp://\S+ \(process \d+\)", line) for line in said)
    assert any(re.fullmatch(r"block 7 done in \d+\.\d+ s, attempt 1 by tcp://\S+", line) for line in said)
    assert any(re.fullmatch(r"block 3 skipped at attempt 1 by tcp://\S+: no tissue", line) for line in said)
    assert sum(" done in " in line for line in said) == 10


def test_the_log_is_bounded_in_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(tally.ASKED, "1")
    monkeypatch.setattr(tally, "MOST_BYTES", 10_000)
    with tally.block_log(tmp_path / "l.jsonl") as log:
        for n in range(1000):
            log.debug("block %d given out, attempt 1", n)
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["l.jsonl.blocks.log", "l.jsonl.blocks.log.1"]
    assert sum(file.stat().st_size for file in files) <= 10_000
    assert "block 999 given out" in files[0].read_text().splitlines()[-1]


def test_what_is_not_asked_for_is_not_even_put_into_words() -> None:
    assert not tally.Tally().detailed
    assert not tally.Tally().log.isEnabledFor(logging.CRITICAL)
