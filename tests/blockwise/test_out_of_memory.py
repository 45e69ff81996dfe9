"""Blocks that need more memory than a worker has: tried alone with that of all, set aside where it is too little.

Two workers that may use 0.8 GB each, of which a fifth is Python's own.
"""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from distributed import Client

from neurovol.blockwise import cluster
from neurovol.blockwise.ledger import Header, Ledger
from neurovol.blockwise.runner import Meter, run_blocks
from neurovol.clustersettings import ClusterSettings
from neurovol.errors import Failure
from neurovol.geometry import Block, BlockGrid, Numbered, Receipt

GRID = BlockGrid((4, 40, 40), (4, 4, 8), (4, 4, 8))  # 1 x 10 x 5 = 50 blocks
HEADER = Header("count", {}, total=len(GRID))
SHARE = 800_000_000
pytestmark = pytest.mark.timeout(120)


@dataclass(frozen=True)
class Hungry:
    """Some blocks fill so many bytes, and keep them long enough for a nanny to see; each notes that it was begun."""

    folder: str
    bytes_of: dict[int, int]

    def __call__(self, block: Block) -> Receipt:
        with (Path(self.folder) / f"{block.index}").open("a") as file:
            file.write("*")
        kept = [np.ones(50_000_000, np.uint8) for _ in range(self.bytes_of.get(block.index, 0) // 50_000_000)]
        time.sleep(1.0 if kept else 0.01)
        return Receipt(block.write, block.index)

    def begun(self, index: int) -> int:
        return (Path(self.folder) / f"{index}").stat().st_size


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setattr(cluster, "MEMORY_LIMIT", 2 * SHARE)
    with cluster.open_client(ClusterSettings(workers=2, threads=1)) as client:
        client.wait_for_workers(2)
        yield client


def _limits(client: Client) -> tuple[list[int], list[int]]:
    """Of the nannies, and of their workers."""
    client.wait_for_workers(2)
    nannies = client.run(lambda dask_worker: dask_worker.memory_manager.memory_limit, nanny=True)
    workers = client.run(lambda dask_worker: dask_worker.memory_manager.memory_limit)
    return list(nannies.values()), list(workers.values())


def test_a_block_too_large_for_a_worker_is_done_alone_with_the_memory_of_all(
    small: Client, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task = Hungry(str(tmp_path), {7: SHARE * 3 // 2})
    with Ledger(tmp_path / "l.jsonl", HEADER) as ledger, caplog.at_level(logging.WARNING):
        run_blocks(small, task, Numbered(GRID), Meter(ledger))
        assert ledger.done == set(range(50))
        assert {n: ledger.rows[n]["attempt"] for n in ledger.done} == dict.fromkeys(range(50), 1) | {7: 3}
    assert task.begun(7) == 3
    assert caplog.text.count("2 times so far (out of memory: it was ended when it used") == 1
    assert _limits(small) == ([SHARE] * 2, [SHARE] * 2)  # as before


@pytest.mark.slow
def test_a_block_too_large_for_the_machine_is_set_aside_and_says_so(small: Client, tmp_path: Path) -> None:
    task = Hungry(str(tmp_path), {7: SHARE * 5 // 2})
    reason = (
        r"block 7 .*died while computing it, 3 times so far, the last time alone, with 1\.60 GB of memory "
        r"\(out of memory: it was ended when it used [12]\.\d\d GB\)"
    )
    with Ledger(tmp_path / "l.jsonl", HEADER) as ledger:
        with pytest.raises(Failure, match=reason):
            run_blocks(small, task, Numbered(GRID), Meter(ledger))
        assert ledger.done == set(range(50)) - {7}
        assert all(ledger.rows[n]["attempt"] == 1 for n in ledger.done)
    assert task.begun(7) == 3
    assert _limits(small) == ([SHARE] * 2, [SHARE] * 2)
