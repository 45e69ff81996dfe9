"""What a sample of 1,000 blocks leaves with Prefect; the seconds that it costs are bench_flow's to measure."""

from pathlib import Path

import pytest

from neurovol.geometry import BlockGrid
from tests.bench.bench_flow import SHAPES, SHARD, by_flow
from tests.flows.served import Served
from tests.free import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # 110 s on two idle cores
MOST_BYTES = 2_000_000


def test_the_database_grows_by_2_mb_at_most_for_a_sample_of_1000_blocks(tmp_path: Path) -> None:
    shape = SHAPES[False]
    assert len(BlockGrid(shape, SHARD, SHARD)) == 1000
    served = Served(tmp_path / "prefect", free_port())
    served.start()
    try:
        _, grown = by_flow(served, tmp_path / "sample", shape)
    finally:
        served.stop()
    assert 0 < grown <= MOST_BYTES
