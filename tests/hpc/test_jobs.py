"""Blocks computed by jobs of a real Slurm: what is lost is replaced, nothing is left over, and no one else gets in."""

import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from distributed import Client, Security

from neurovol.blockwise.cluster import open_client
from neurovol.blockwise.ledger import Header, Ledger
from neurovol.blockwise.runner import Meter, run_blocks
from neurovol.clustersettings import ClusterSettings, JobSettings
from neurovol.errors import Failure, UserError
from neurovol.geometry import Block, BlockGrid, Numbered, Receipt
from tests.hpc.conftest import jobs, said, wait_for

GRID = BlockGrid((4, 40, 80), (4, 4, 8), (4, 4, 8))  # 1 x 10 x 10 = 100 blocks
HEADER = Header("count", {}, total=len(GRID))
pytestmark = [pytest.mark.hpc, pytest.mark.timeout(240)]


@dataclass(frozen=True)
class Noted:
    """Notes which job ran each block, and how often."""

    folder: str
    seconds: float

    def __call__(self, block: Block) -> Receipt:
        with (Path(self.folder) / f"{block.index}.begun").open("a") as file:
            file.write("*")
        time.sleep(self.seconds)
        (Path(self.folder) / f"{block.index}.job").write_text(os.environ["SLURM_JOB_ID"])
        return Receipt(block.write, block.index)

    def jobs(self) -> list[int]:
        return [int(file.read_text()) for file in Path(self.folder).glob("*.job")]

    def begun(self) -> int:
        return sum(file.stat().st_size for file in Path(self.folder).glob("*.begun"))


def run(client: Client, task: Noted, folder: Path) -> None:
    with Ledger(folder / "l.jsonl", HEADER) as ledger:
        run_blocks(client, task, Numbered(GRID), Meter(ledger), retries=1)
        assert ledger.done == set(range(100))
        assert all(row["attempt"] == 1 for row in map(ledger.rows.__getitem__, ledger.done))  # no block is blamed


def test_blocks_are_done_by_as_many_jobs_as_are_set_which_are_gone_afterwards(
    cluster: ClusterSettings, tmp_path: Path
) -> None:
    task = Noted(str(tmp_path), 0.05)
    with open_client(cluster, tmp_path / "jobs", "neurovol-segment-brain1") as client:
        wait_for(lambda: len(client.nthreads()) == 2, "both jobs")
        assert list(jobs().values()) == ["neurovol-segment-brain1"] * 2
        run(client, task, tmp_path)
    assert len(set(task.jobs())) == 2
    wait_for(lambda: jobs() == {}, "the jobs to end", 15)


@pytest.mark.parametrize("count", [1, 2])
def test_a_job_that_is_cancelled_is_replaced(cluster: ClusterSettings, tmp_path: Path, count: int) -> None:
    task = Noted(str(tmp_path), 0.1 * count)
    with open_client(cluster.model_copy(update={"workers": count}), tmp_path / "jobs") as client:
        wait_for(lambda: len(client.nthreads()) == count, "the jobs")
        first = min(jobs())
        threading.Timer(2.0, said, ["scancel", str(first)]).start()
        with Ledger(tmp_path / "l.jsonl", HEADER) as ledger:
            run_blocks(client, task, Numbered(GRID), Meter(ledger))
            assert ledger.done == set(range(100))
        wait_for(lambda: len(client.nthreads()) == count, "another job")
    assert max(task.jobs()) > first + count - 1


def test_a_job_begins_no_block_that_its_walltime_would_cut(cluster: ClusterSettings, tmp_path: Path) -> None:
    minute = cluster.model_copy(update={"job": cluster.job.model_copy(update={"walltime": "00:01:00"})})
    task, blocks = Noted(str(tmp_path), 4.0), Numbered(GRID, places=range(36))
    with open_client(minute, tmp_path / "jobs") as client, Ledger(tmp_path / "l.jsonl", HEADER) as ledger:
        run_blocks(client, task, blocks, Meter(ledger), retries=1)
        assert {ledger.rows[n]["attempt"] for n in range(36)} == {1}  # no block is blamed
    assert len(set(task.jobs())) >= 3  # 72 s of work a node, in jobs of at most 60
    assert task.begun() == 36  # none was begun in vain


def test_no_job_and_no_key_outlives_a_driver_that_is_killed(cluster: ClusterSettings, tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path\n"
        "from neurovol.blockwise.cluster import open_client\n"
        "from neurovol.clustersettings import ClusterSettings\n"
        "if __name__ == '__main__':\n"
        "    settings = ClusterSettings.model_validate_json(sys.argv[1])\n"
        "    with open_client(settings, Path(sys.argv[2])) as client:\n"
        "        client.wait_for_workers(2)\n"
        "        print(client.scheduler_info()['address'], flush=True)\n"
        "        time.sleep(600)\n"
    )
    folder = tmp_path / "jobs"
    command = [sys.executable, "-c", code, cluster.model_dump_json(), str(folder)]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    with driver:
        assert driver.stdout.readline().startswith("tls://")
        (keys,) = folder.glob("keys-*")
        assert stat.S_IMODE(keys.stat().st_mode) == 0o700
        assert {stat.S_IMODE(file.stat().st_mode) for file in keys.iterdir()} == {0o600}
        driver.send_signal(signal.SIGKILL)
    wait_for(lambda: jobs() == {}, "the jobs to notice")
    with open_client(cluster, folder):
        assert [keys] != list(folder.glob("keys-*"))
        assert not keys.exists()


def test_a_client_without_the_certificate_is_refused(cluster: ClusterSettings, tmp_path: Path) -> None:
    with open_client(cluster, tmp_path / "jobs") as client:
        address = client.scheduler_info()["address"]
        assert address.startswith("tls://")
        with pytest.raises(OSError, match="certificate does not match"):
            Client(address, timeout=3, security=Security.temporary())  # a certificate, but not this run's
        with pytest.raises(OSError, match=r"Timed out|reset by peer"):
            Client(address.replace("tls", "tcp"), timeout=3)
        assert client.submit(os.getpid).result()


def test_a_partition_that_is_not_there_is_named_with_what_was_asked(cluster: ClusterSettings, tmp_path: Path) -> None:
    wrong = cluster.model_copy(update={"job": cluster.job.model_copy(update={"partition": "nightly"})})
    with pytest.raises(UserError, match=r"Slurm refuses.*invalid partition.*-p nightly"), open_client(wrong, tmp_path):
        pass


def test_jobs_that_end_as_they_start_are_not_asked_for_for_ever(cluster: ClusterSettings, tmp_path: Path) -> None:
    job = JobSettings(cores=1, memory_gb=1, interface="lo", setup=("echo no such module >&2", "exit 3"))
    wrong = cluster.model_copy(update={"job": job, "workers": 1})
    with pytest.raises(Failure, match=r"3 jobs ended before.*no such module"), open_client(wrong, tmp_path / "jobs"):
        pass


@pytest.fixture
def refusing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """While this file is there, jobs are refused as they are submitted, as by a Slurm that is being started anew."""
    file, bin_folder = tmp_path / "refusing", tmp_path / "bin"
    bin_folder.mkdir()
    sbatch = bin_folder / "sbatch"
    says = f'echo "$@" | grep -q test-only && [ ! -e {file}.too ]'
    sbatch.write_text(
        f"#!/bin/sh\nif [ -e {file} ] && ! {{ {says}; }}; then echo sbatch: error: Socket timed out >&2; exit 1; fi\n"
        f'exec {shutil.which("sbatch")} "$@"\n'
    )
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", str(bin_folder), prepend=os.pathsep)
    return file


def test_jobs_that_are_refused_for_a_while_are_asked_for_again(
    cluster: ClusterSettings, tmp_path: Path, refusing: Path
) -> None:
    refusing.touch()
    threading.Timer(12.0, refusing.unlink).start()
    with open_client(cluster, tmp_path / "jobs") as client:
        wait_for(lambda: len(client.nthreads()) == 2, "both jobs")
        assert len(jobs()) == 2
        refusing.touch()
        said("scancel", str(min(jobs())))
        wait_for(lambda: len(client.nthreads()) == 1, "the job to end")
        time.sleep(8)
        refusing.unlink()
        wait_for(lambda: len(client.nthreads()) == 2, "another job")


def test_jobs_that_are_refused_for_good_are_not_waited_for(
    cluster: ClusterSettings, tmp_path: Path, refusing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neurovol.blockwise.jobs.MOST_REFUSED", 2)
    refusing.touch()
    threading.Timer(4.0, refusing.with_name("refusing.too").touch).start()
    wanted = r"4 jobs were refused: Socket timed out"
    with pytest.raises(Failure, match=wanted), open_client(cluster, tmp_path / "jobs"):
        pass


def test_a_job_on_a_node_whose_gpu_is_not_seen_does_no_blocks(cluster: ClusterSettings, tmp_path: Path) -> None:
    wrong = cluster.model_copy(update={"job": cluster.job.model_copy(update={"gpus": 1}), "workers": 1})
    with pytest.raises(Failure, match=r"3 jobs ended before.*no GPU is visible on"), open_client(wrong, tmp_path):
        pass
