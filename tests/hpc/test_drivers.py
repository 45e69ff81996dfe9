"""Drivers as jobs of a real Slurm: deploy/slurm/driver.sbatch goes back into the queue, and goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from neurovol.cli import main
from tests.arriving import arrive, write_project
from tests.hpc.conftest import jobs, said, wait_for
from tests.tiny import contents

pytestmark = [pytest.mark.hpc, pytest.mark.timeout(900)]
SCRIPT = Path(__file__).parents[2] / "deploy" / "slurm" / "driver.sbatch"
ROOT = SCRIPT.parents[2]


def test_a_driver_whose_time_is_up_goes_back_into_the_queue_and_goes_on(slurm: Path, tmp_path: Path) -> None:
    file, undisturbed = (write_project(tmp_path / name) for name in _made(tmp_path, "disturbed", "undisturbed"))
    for project in (file, undisturbed):
        arrive(project, "m1", (40, 200, 200))
    environment = os.environ | {"NEUROVOL_PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    command = ["sbatch", "--parsable", f"--chdir={tmp_path}", "--cpus-per-task=2", "--mem=4G", str(SCRIPT)]
    asked = subprocess.run(
        [*command, str(file), "--sample", "m1"], env=environment, check=True, capture_output=True, text=True
    )
    job = asked.stdout.strip()
    sample = tmp_path / "disturbed" / "stores" / "lab" / "samples" / "m1"
    wait_for(lambda: len(_lines(sample / "ledgers" / "segment@unet3d-1.jsonl")) > 3, "blocks to be predicted", 200)
    said("scancel", "--signal=USR1", "--batch", job)  # as Slurm does two minutes before the walltime ends
    wait_for(lambda: "Restarts=1 " in said("scontrol", "show", "job", job), "the job to be requeued", 60)
    before = len(_lines(sample / "ledgers" / "segment@unet3d-1.jsonl"))
    wait_for(lambda: jobs() == {}, "the job to end", 500)
    assert "JobState=COMPLETED" in said("scontrol", "show", "job", job)
    log = (tmp_path / f"neurovol-{job}.log").read_text()
    assert "the walltime ends: stopping, to go on in the queue" in log
    assert "convert m1: was done before" in log
    assert main(["run", str(undisturbed), "--sample", "m1"]) == 0
    assert contents(sample) == contents(tmp_path / "undisturbed" / "stores" / "lab" / "samples" / "m1")
    assert before > 4


def _made(folder: Path, *names: str) -> list[str]:
    for name in names:
        (folder / name).mkdir()
    return list(names)


def _lines(file: Path) -> list[bytes]:
    return file.read_bytes().splitlines() if file.exists() else []
