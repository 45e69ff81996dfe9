"""Jobs of a real Slurm that ask for a GPU, on a machine that has one."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from neurovol.blockwise.ledger import read_ledger
from neurovol.project import open_project
from neurovol.stages.steps import Steps
from tests.tiny import write_tiny

pytestmark = [
    pytest.mark.hpc,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU on this machine"),
    pytest.mark.timeout(300),
]
SLURM = """kind = "slurm"
workers = 1

[cluster.job]
cores = 1
memory_gb = 3
interface = "lo"

[cluster.gpu_job]
cores = 2
memory_gb = 7
gpus = 1
interface = "lo"
"""


@pytest.mark.usefixtures("slurm")
def test_a_job_that_asks_for_a_gpu_sees_it_and_segments_on_it(tmp_path: Path) -> None:
    file = write_tiny(
        tmp_path, ("workers = 1\nthreads = 2\n", SLURM), ("window = [16, 32, 32]\n", ""), ('precision = "fp32"\n', "")
    )
    told = subprocess.run(
        [sys.executable, "-m", "neurovol.cli", "doctor", str(file)], capture_output=True, text=True, check=False
    ).stdout
    print(told)
    assert re.search(r"ok +gpu workers +compute on .* of \d+ GB", told), told
    done = subprocess.run(
        [sys.executable, "-m", "neurovol.cli", "run", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    record = read_ledger(Steps(open_project(file)).segment("a").ledger)
    assert record is not None
    assert record.header.chosen["device"] == "cuda"
