"""A whole project by jobs of a real Slurm: the same results as on one machine, also when its driver was killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from neurovol.cli import main
from neurovol.clustersettings import ClusterSettings
from neurovol.geometry import Box
from neurovol.project import open_project
from neurovol.stages.steps import Steps
from neurovol.volume.omezarr import VolumeReader, open_volume
from tests.hpc.conftest import jobs, wait_for
from tests.tiny import write_tiny

pytestmark = [pytest.mark.hpc, pytest.mark.timeout(600)]
HERE = "workers = 1\nthreads = 2\n"
WINDOWS = [("window = [16, 32, 32]\n", ""), ("window = [4, 48, 48]\n", "")]  # fewer
SLURM = """kind = "slurm"
workers = 2

[cluster.job]
cores = 1
memory_gb = 2
interface = "lo"

[cluster.gpu_job]
cores = 2
memory_gb = 3
interface = "lo"
"""


def volumes(file: Path) -> dict[str, np.ndarray]:
    """Level 0 of every volume of the samples, by its path."""
    samples = open_project(file).folder / "samples"
    found = {}
    for metadata in sorted(samples.rglob("zarr.json")):
        if metadata.parent.suffix == ".zarr" and "progress" not in metadata.parts:
            info = open_volume(metadata.parent)
            found[str(info.path.relative_to(samples))] = VolumeReader(str(info.path)).read(Box.of_shape(info.shape))
    return found


def test_a_project_on_slurm_comes_to_what_it_comes_to_here(cluster: ClusterSettings, tmp_path: Path) -> None:
    files = []
    for name, text in (("here", HERE), ("slurm", SLURM)):
        (tmp_path / name).mkdir()
        files.append(write_tiny(tmp_path / name, (HERE, text), *WINDOWS))
    assert main(["run", str(files[0])]) == 0

    command = [sys.executable, "-m", "neurovol.cli", "run", str(files[1])]
    driver = subprocess.Popen(command, start_new_session=True)
    seen: set[str] = set()
    ledger = Steps(open_project(files[1])).segment("a").ledger
    while not ledger.exists():
        assert driver.poll() is None, "it ended before its jobs predicted"
        seen |= set(jobs().values())
        time.sleep(0.1)
    time.sleep(1.0)  # killed while jobs predict
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    wait_for(lambda: jobs() == {}, "the jobs to end with their driver")
    assert subprocess.run(command, check=False).returncode == 0

    assert seen == {"neurovol-convert-a", "neurovol-pseudolabel-a", "neurovol-segment-a"}
    here, there = map(volumes, files)
    assert here.keys() == there.keys()
    for name, voxels in here.items():
        if voxels.dtype == np.uint8:  # probabilities may be rounded otherwise where another precision was quicker
            assert np.abs(voxels.astype(int) - there[name]).max() <= 1, name
        else:
            assert np.array_equal(voxels, there[name]), name
    assert not list(open_project(files[1]).folder.glob("jobs/keys-*"))
