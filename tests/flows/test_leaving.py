"""A driver's job whose walltime ends: the run waits to go on, and the server hears that its process went."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flows.leaving import LEFT
from tests.arriving import write_slow_project
from tests.flows.served import Served, eventually, kill_all
from tests.free import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]


def test_the_last_that_is_heard_of_a_run_whose_time_is_up_is_that_it_left(tmp_path: Path) -> None:
    file, place = write_slow_project(tmp_path)
    served = Served(tmp_path / "prefect", free_port())
    served.start()
    try:
        assert served.deploy(file).returncode == 0
        run = served.start_run("sample/lab", sample="m1")
        (tmp_path / "empty").mkdir()
        environment = served.environment | {  # as deploy/slurm/flow-run.sbatch has it
            "PREFECT__FLOW_RUN_ID": run,
            "PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR": "reschedule",
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        }
        command = [sys.executable, "-m", "prefect", "flow-run", "execute"]
        process = subprocess.Popen(command, env=environment, cwd=tmp_path / "empty")
        try:
            eventually(lambda: place.exists() and len(place.read_bytes().splitlines()) > 4, 120)
            os.kill(process.pid, signal.SIGTERM)
            assert process.wait(timeout=60) == 0
        finally:
            if process.poll() is None:
                kill_all(process.pid)
        waits = served.call(f"flow_runs/{run}", method="GET")["state"]["name"]
        eventually(lambda: LEFT in said(served, run), 30)
        events = said(served, run)
    finally:
        served.stop()
    assert waits == "AwaitingRetry"
    assert "prefect.flow-run.heartbeat" in events
    assert events.index(LEFT) > max(i for i, e in enumerate(events) if e == "prefect.flow-run.heartbeat")
    assert events.index(LEFT) > events.index("prefect.flow-run.AwaitingRetry")


def said(served: Served, run: str) -> list[str]:
    """What was said by a run, and of it, in turn."""
    wanted = {"filter": {"any_resource": {"id": [f"prefect.flow-run.{run}"]}, "order": "ASC"}, "limit": 50}
    return [event["event"] for event in served.call("events/filter", wanted)["events"]]
