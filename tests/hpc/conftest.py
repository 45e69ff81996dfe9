"""A real Slurm of two nodes on this machine, as CI installs it; it takes root and Debian's slurm-wlm and munge."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from neurovol.clustersettings import ClusterSettings, JobSettings

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip all that is marked hpc where CI found no Slurm: WITHOUT_HPC says why, and so does pytest's summary."""
    if why := os.environ.get("WITHOUT_HPC"):
        for item in items:
            if item.get_closest_marker("hpc"):
                item.add_marker(pytest.mark.skip(reason=f"not tested on a real Slurm: {why}"))


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Its folder; SLURM_CONF points to it meanwhile."""
    assert shutil.which("sbatch"), "no Slurm: apt-get install --no-install-recommends slurm-wlm munge"
    folder = tmp_path_factory.mktemp("slurm")
    environment = os.environ | {"SLURM_SANDBOX": str(folder)}
    started = subprocess.run([HERE / "start-slurm.sh"], env=environment, check=False, capture_output=True, text=True)
    logs = "".join(log.read_text()[-2000:] for log in folder.glob("log/*.log"))
    assert started.returncode == 0, started.stdout + started.stderr + logs
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        patch.setenv(
            "PYTHONPATH", str(HERE.parents[1])
        )  # jobs import the tests' own tasks, and nothing from where they start
        yield folder
        subprocess.run([HERE / "stop-slurm.sh"], env=environment, check=True)


@pytest.fixture
def cluster(slurm: Path) -> Iterator[ClusterSettings]:
    """Two jobs of a core each; none may be left of them."""
    assert jobs() == {}
    yield ClusterSettings(kind="slurm", workers=2, job=JobSettings(cores=1, memory_gb=1, interface="lo"))
    wait_for(lambda: jobs() == {}, "the queue to be empty")


def jobs() -> dict[int, str]:
    """Jobs that wait, run or end, and their names."""
    lines = said("squeue", "--me", "--noheader", "--format=%i %j").splitlines()
    return {int(job): name for job, name in (line.split(maxsplit=1) for line in lines)}


def said(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def wait_for(true: Callable[[], object], what: str, seconds: float = 100.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.2)
