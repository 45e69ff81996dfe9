"""What queues are asked for. Only Slurm's is tried on a real one (tests/hpc)."""

from importlib import import_module
from pathlib import Path

import pytest

from neurovol.blockwise.jobs import job_options, lifetime_s
from neurovol.clustersettings import JobSettings
from neurovol.fields import walltime_s

JOB = JobSettings(
    partition="night",
    account="brain",
    walltime="1-02:30:00",
    cores=8,
    memory_gb=32,
    gpus=1,
    interface="ib0",
    directives=("-M me@lab.example",),
    setup=("module load cuda",),
)
ASKED = {
    "slurm": ("-J", "-p night", "-A brain", "--cpus-per-task=8", "--mem=30517M", "-t 26:30:00", "--gres=gpu:1"),
    "pbs": ("-N", "-q night", "-A brain", "-l select=1:ncpus=8:mem=32000MB:ngpus=1", "-l walltime=26:30:00"),
    "lsf": ("-J", "-q night", '-P "brain"', "-n 8", "-M 32000000", "-W 26:30", '-gpu "num=1"'),
    "sge": ("-N", "-q night", "-P brain", "-pe smp 8", "-l h_vmem=4000M", "-l h_rt=26:30:00", "-l gpu=1"),
}
MARKS = {"slurm": "SBATCH", "pbs": "PBS", "lsf": "BSUB", "sge": "$"}


@pytest.mark.parametrize("kind", ASKED)
def test_a_job_script_asks_for_what_is_set(kind: str) -> None:
    name, logs = "neurovol-segment-brain1", Path("/store/jobs/logs")
    options = job_options(kind, JOB, name, 2, logs, {"OMP_NUM_THREADS": "8"})
    job = getattr(import_module(f"dask_jobqueue.{kind}"), f"{kind.upper()}Job")
    script = job(scheduler="tls://10.0.0.1:8786", name="0", config_name=kind, **options).job_script()
    lines = script.splitlines()
    asked = [line.removeprefix(f"#{MARKS[kind]} ") for line in lines if line.startswith(f"#{MARKS[kind]} ")]
    for option in (*ASKED[kind], "-M me@lab.example"):
        assert any(line == option or (line.startswith(f"{option} ") and name in line) for line in asked), option
    assert str(logs) in script
    own = [line for line in lines if line and not line.startswith("#")]
    assert own.pop(0) == "export PYTHONSAFEPATH=1"
    assert own[:3] == ["export OMP_NUM_THREADS=8", "export NEUROVOL_UNTIL=$(( $(date +%s) + 95340 ))", JOB.setup[0]]
    assert own[3].startswith("nvidia-smi")
    worker = own[4]
    assert "tls://10.0.0.1:8786" in worker
    for option in ("--nthreads 2", "--nanny", "--death-timeout 60", "--lifetime-stagger 300s", "--interface ib0"):
        assert option in worker


@pytest.mark.parametrize("walltime", ["00:01:00", "00:10:00", "04:00:00", "7-00:00:00"])
def test_workers_leave_before_their_walltime_ends_however_they_are_staggered(walltime: str) -> None:
    life, stagger = lifetime_s(walltime)
    assert 0.7 * walltime_s(walltime) < life - stagger < life + stagger < walltime_s(walltime)
