"""What the doctor sees of a real Slurm, and of workers that are jobs of it."""

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from neurovol.clustersettings import ClusterSettings, JobSettings
from neurovol.doctor.checks import examine
from neurovol.doctor.finding import Finding, examined
from neurovol.doctor.slurm import Node, _fits, check_commands, check_slurm
from tests.tiny import write_tiny

HOST = socket.gethostname().partition(".")[0]
HPC = Path(__file__).parents[1] / "hpc"
MORE = f"""\
NodeName=n9 NodeHostname={HOST} NodeAddr=127.0.0.1 Port=17999 CPUs=64 RealMemory=500000 State=DOWN
PartitionName=short Nodes=n1 MaxTime=02:00:00 State=UP
PartitionName=closed Nodes=n1 State=DOWN
PartitionName=broken Nodes=n9 State=UP
PartitionName=paid Nodes=n1 State=UP AllowAccounts=lab
"""
SMALL = {"cores": 1, "memory_gb": 2.0, "walltime": "00:20:00"}


@pytest.fixture(scope="module")
def configured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("slurm")
    environment = os.environ | {"SLURM_SANDBOX": str(folder), "SLURM_SANDBOX_PORT": "6951", "SLURM_SANDBOX_MORE": MORE}
    subprocess.run([HPC / "start-slurm.sh"], env=environment, check=True, stdout=subprocess.DEVNULL)
    yield folder / "slurm.conf"
    subprocess.run([HPC / "stop-slurm.sh"], env=environment, check=True)


@pytest.fixture
def running(configured: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SLURM_CONF", str(configured))
    return configured


def found(**asked: object) -> list[Finding]:
    return list(check_slurm(JobSettings.model_validate(SMALL | asked)))


@pytest.mark.hpc
def test_a_job_that_fits_the_default_partition_is_ok(running: Path) -> None:
    (ok,) = found()
    assert ok.level == "ok"
    assert ok.text == 'cluster.job: partition "main" is up, and takes jobs of 1 cores, 2 GB for 00:20:00'
    assert found(partition="main") == [ok]


@pytest.mark.hpc
@pytest.mark.parametrize(
    ("asked", "text", "way_out"),
    [
        (
            {"partition": "nihgt"},
            'no partition "nihgt"; there are: main, short, closed, broken, paid',
            "cluster.job.partition",
        ),
        ({"partition": "closed"}, 'partition "closed" is DOWN, not UP', "cluster.job.partition"),
        ({"partition": "broken"}, 'no node of partition "broken" can be used: n9 down', "sinfo -R"),
        (
            {"partition": "paid", "account": "other"},
            'takes no jobs of account "other", but of lab',
            "cluster.job.account",
        ),
        ({"partition": "short", "walltime": "03:00:00"}, "walltime is 03:00:00, and partition", "at most 02:00:00"),
        ({"cores": 8}, "8 cores, 2 GB and 0 GPUs, which no usable node", "ask for less"),
        ({"memory_gb": 9.0}, "the largest, n", "ask for less"),
    ],
)
def test_why_no_such_job_would_run(running: Path, asked: dict[str, object], text: str, way_out: str) -> None:
    (fault,) = found(**asked)
    assert fault.level == "fail"
    assert text in fault.text
    assert way_out in fault.way_out


@pytest.mark.hpc
def test_an_account_that_a_partition_takes_is_ok(running: Path) -> None:
    assert [one.level for one in found(partition="paid", account="lab")] == ["ok"]


@pytest.mark.hpc
def test_a_slurm_that_does_not_answer_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slurm.conf").write_text("this is none\n")
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    (fault,) = examined("slurm", 60, lambda: check_slurm(JobSettings()))
    assert fault.level == "fail"
    assert "is slurmctld running?" in fault.text


@pytest.mark.hpc
def test_this_machine_can_submit(running: Path) -> None:
    assert [one.level for one in check_commands(ClusterSettings(kind="slurm"))] == ["ok"]


@pytest.mark.hpc
def test_workers_come_as_jobs_and_are_like_the_driver(running: Path, tmp_path: Path) -> None:
    said: list[str] = []
    job = {"interface": "lo", **SMALL}
    lines = list(examine(write_tiny(tmp_path), {"cluster.kind": "slurm", "cluster.job": job}, say=said.append))
    assert not [one.line for one in lines if one.level in ("warn", "fail")]
    assert next(one for one in lines if one.name == "workers").text.startswith("1 came and answered")
    assert "may wait in the queue" in said[0]
    assert [path.name for path in tmp_path.iterdir()] == ["project.toml"]


@pytest.mark.hpc
def test_jobs_that_wait_longer_than_one_waits_are_given_up(running: Path, tmp_path: Path) -> None:
    job = {"interface": "lo", **SMALL, "directives": ["--begin=now+1hour"]}
    lines = list(examine(write_tiny(tmp_path), {"cluster.kind": "slurm", "cluster.job": job}, wait_s=3))
    (workers,) = [one for one in lines if one.name == "workers"]
    assert workers.level == "fail"
    assert "within 3 s" in workers.text


@pytest.mark.hpc
def test_a_job_that_asks_for_a_gpu_and_gets_none_fails(running: Path, tmp_path: Path) -> None:
    job = {"interface": "lo", **SMALL, "memory_gb": 6.0, "gpus": 1}
    (fits,) = found(gpus=1)
    assert "2 GB and a GPU for" in fits.text  # Slurm has one, though the machine has none
    lines = list(examine(write_tiny(tmp_path), {"cluster.kind": "slurm", "cluster.job": job}, wait_s=60))
    faults = [one for one in lines if one.level == "fail"]
    assert [one.name for one in faults] == ["workers"]
    assert "GPU" in faults[0].text


def test_a_node_without_a_gpu_does_not_fit_a_job_that_asks_for_one() -> None:
    job = JobSettings(cores=2, memory_gb=8, gpus=1)
    fits = [_fits(Node("n", "idle", 2, 8000, gres), job) for gres in ("(null)", "gpu:h200:8(S:0-1)", "shard:8")]
    assert fits == [False, True, False]
    assert not _fits(Node("n", "idle", 1, 8000, "gpu:1"), job)
    assert not _fits(Node("n", "idle", 2, 7000, "gpu:1"), job)
