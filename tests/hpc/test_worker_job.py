"""A Prefect worker as a job of a real Slurm: deploy/slurm/worker.sbatch takes runs, and asks for itself again."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.flows.served import Served, eventually
from tests.free import free_port
from tests.hpc.conftest import jobs, said, wait_for

pytestmark = [pytest.mark.hpc, pytest.mark.timeout(280)]
SCRIPT = Path(__file__).parents[2] / "deploy" / "slurm" / "worker.sbatch"
POOL = "night"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """A server with a pool of processes."""
    served = Served(tmp_path / "prefect", free_port())
    served.start()
    try:
        served.call("work_pools/", {"name": POOL, "type": "process"})
        yield served
    finally:
        served.stop()


def test_a_worker_that_is_a_job_is_online_and_goes_back_into_the_queue_as_its_walltime_ends(
    slurm: Path, served: Served, tmp_path: Path
) -> None:
    environment = served.environment | {"NEUROVOL_PYTHON": sys.executable, "SLURM_CONF": str(slurm / "slurm.conf")}
    command = ["sbatch", "--parsable", f"--chdir={tmp_path}", "--mem=1G", str(SCRIPT), POOL]
    asked = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    job = asked.stdout.strip()
    workers = eventually(lambda: served.call(f"work_pools/{POOL}/workers/filter", {}) or None, 120)
    assert [worker["status"] for worker in workers] == ["ONLINE"]
    assert set(jobs().values()) == {"neurovol-worker"}
    said("scancel", "--signal=USR1", "--batch", job)  # as Slurm does a minute before the walltime ends
    wait_for(lambda: "Restarts=1 " in said("scontrol", "show", "job", job), "the job to be requeued", 60)
    said("scancel", job)
    wait_for(lambda: jobs() == {}, "the job to end")
    log = (tmp_path / f"neurovol-worker-{job}.log").read_text()
    assert "started!" in log
    assert "Traceback" not in log
