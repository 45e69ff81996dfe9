"""A run that a person cancels in Prefect: it ends in time, what is done is kept, and the next run goes on."""

import time
from pathlib import Path

import pytest

from neurovol.blockwise.ledger import read_ledger
from tests.arriving import write_slow_project
from tests.flows.served import Served, eventually, worker
from tests.free import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]
NOTICED_S = 20  # a worker asks for what is cancelled every 10 s
GRACE_S = 30


def test_a_cancelled_run_ends_in_time_and_the_next_goes_on(tmp_path: Path) -> None:
    file, place = write_slow_project(tmp_path)
    served = Served(tmp_path / "prefect", free_port())
    served.start()
    try:
        assert served.deploy(file).returncode == 0
        with worker(served, tmp_path / "worker.log"):
            first = served.start_run("sample/lab", sample="m1")
            eventually(lambda: place.exists() and len(place.read_bytes().splitlines()) > 4, 120)
            asked_at = time.monotonic()
            served.call(f"flow_runs/{first}/set_state", {"state": {"type": "CANCELLING"}})
            assert served.ended(first)["state_type"] == "CANCELLED"
            assert time.monotonic() - asked_at < NOTICED_S + GRACE_S
            record = read_ledger(place)
            assert record is not None
            assert record.finished is None
            done = set(record.done)
            assert done
            second = served.start_run("sample/lab", sample="m1")
            assert served.ended(second)["state_type"] == "COMPLETED"
    finally:
        served.stop()
    record = read_ledger(place)
    assert record is not None
    assert record.finished is not None
    attempts = [line for line in place.read_text().splitlines() if '"done"' in line]
    assert len(attempts) == len(record.done) > len(done)  # none was done twice
