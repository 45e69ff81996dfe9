"""Scripts of deploy/ that no test runs whole: their shell parses, and what they name is there."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
DEFINITION = DEPLOY / "apptainer.def"
SECTION = re.compile(r"^%(\w+)\n(.*?)(?=^%|\Z)", re.MULTILINE | re.DOTALL)

JOBS = {  # what each is given
    "driver.sbatch": ("project.toml",),
    "flow-run.sbatch": (),
    "worker.sbatch": ("neurovol-slurm",),
}
LOOK = """
import json, os, stat, sys
print(json.dumps({"mode": stat.S_IMODE(os.stat(".").st_mode), "there": os.listdir(), "told": sys.argv[1:]}))
"""


def run_job(name: str, folder: Path, python: str) -> subprocess.CompletedProcess[str]:
    """A job's script, put into a folder, as bash runs it on a node."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PREFECT_"))}
    told = {
        "NEUROVOL_PYTHON": python,
        "PREFECT__FLOW_RUN_ID": "e0a3f6a2-7c4d-4c8e-9a68-1f5b0f3d2c11",
        "PREFECT_API_URL": "http://127.0.0.1:9/api",
        "TMPDIR": str(folder.parent),
    }
    command = ["bash", str(DEPLOY / "slurm" / name), *JOBS[name]]
    return subprocess.run(command, cwd=folder, env=kept | told, capture_output=True, text=True, timeout=60, check=False)


def check_shell(script: str) -> None:
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("file", sorted((DEPLOY / "slurm").glob("*.sbatch")), ids=lambda file: file.name)
def test_a_job_script_parses_and_asks_for_time_memory_and_a_warning(file: Path) -> None:
    script = file.read_text(encoding="utf-8")
    check_shell(script)
    assert script.startswith("#!/bin/bash\n")
    for option in ("--job-name=", "--time=", "--mem=", "--signal=B:"):
        assert re.search(rf"^#SBATCH {option}", script, re.MULTILINE), option


@pytest.mark.parametrize("name", JOBS)
def test_python_may_be_a_command_of_several_words(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    done = run_job(name, folder, "printf %s, of several words")
    assert re.match(r"of,several,words,-m,(prefect,|neurovol\.cli,run,project\.toml,)", done.stdout)


@pytest.mark.parametrize("name", JOBS)
def test_a_job_runs_nothing_of_the_folder_it_is_put_into(name: str, tmp_path: Path) -> None:
    """Without site packages (-S) the only modules to be found are those that somebody planted."""
    folder = tmp_path / "planted"
    for module in ("prefect/__main__.py", "neurovol/cli.py"):
        (folder / module).parent.mkdir(parents=True)
        (folder / module).write_text("print('planted')\n", encoding="utf-8")
    done = run_job(name, folder, f"{sys.executable} -S")
    assert "planted" not in done.stdout
    assert re.search(r"No module named '?(prefect|neurovol)", done.stderr)


@pytest.mark.parametrize("name", ["flow-run.sbatch", "worker.sbatch"])
def test_prefect_is_started_where_nobody_else_can_write(name: str, tmp_path: Path) -> None:
    """It reads settings there; a flow's driver also copies what is there, and imports from the copy first."""
    folder = tmp_path / "of anybody"
    folder.mkdir()
    folder.chmod(0o777)
    (folder / "prefect.toml").touch()
    (tmp_path / "look.py").write_text(LOOK, encoding="utf-8")
    done = run_job(name, folder, f"env LOOKED=1 {sys.executable} {tmp_path / 'look.py'}")
    seen = json.loads(done.stdout)
    assert seen["told"][:2] == ["-m", "prefect"]
    assert seen["mode"] & 0o022 == 0
    if name == "flow-run.sbatch":
        assert seen["there"] == []


def test_a_worker_that_stops_waits_for_its_processes_but_not_for_sbatch(tmp_path: Path) -> None:
    unit = (DEPLOY / "server" / "neurovol-worker.service").read_text(encoding="utf-8")
    *_, waits = re.findall(r"^ExecStop=(.*)$", unit, re.MULTILINE)
    sleep = shutil.which("sleep")
    assert sleep is not None
    (tmp_path / "sbatch").symlink_to(sleep)
    worker = subprocess.Popen(
        ["bash", "-c", f"{tmp_path}/sbatch 60 & sleep 60 & echo $!; wait"],
        stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert worker.stdout is not None
    flow = int(worker.stdout.readline())
    command = shlex.split(waits.replace("sleep 2", "sleep 0.1"))
    stop = subprocess.Popen(command, env=os.environ | {"MAINPID": str(worker.pid)})
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            stop.wait(1)
        os.kill(flow, signal.SIGTERM)
        assert stop.wait(10) == 0
        assert worker.poll() is None  # its sbatch is still there
    finally:
        os.killpg(worker.pid, signal.SIGKILL)
        worker.communicate()
        stop.wait(10)


def test_make_deploy_takes_what_pip_installed_and_the_users_own_profile(tmp_path: Path) -> None:
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    (tmp_path / "bin" / "neurovol").touch()
    python.write_text('#!/bin/sh\necho "$PREFECT_HOME: $*"\n', encoding="utf-8")
    python.chmod(0o755)
    kept = {key: value for key, value in os.environ.items() if key != "PREFECT_HOME" and not key.startswith("MAKE")}
    command = ["make", "--silent", "deploy", f"VENV={tmp_path}", "PROJECT=project.toml"]
    done = subprocess.run(command, cwd=ROOT, env=kept, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == ": -m flows.deploy project.toml --site deploy/sites/local.yaml\n", done.stderr


def test_the_image_copies_what_there_is_and_installs_what_can_be_asked_for() -> None:
    text = DEFINITION.read_text(encoding="utf-8")
    sections = dict(SECTION.findall(text))
    assert text.startswith("Bootstrap: docker\nFrom: ")
    assert set(sections) == {"files", "post", "environment", "runscript", "test", "labels"}
    for name in ("post", "environment", "runscript", "test"):
        check_shell(sections[name])
    # of a line Apptainer takes one source and one destination, and ignores further words (pkg/build/types/parser)
    lines = [line.split() for line in sections["files"].strip().split("\n")]
    assert all(len(words) == 2 and words[1] == "/opt/neurovol/" for words in lines)
    copied = {source for source, _ in lines}
    assert copied == {"pyproject.toml", "README.md", "LICENSE", "neurovol", "flows", "deploy"}
    assert all((ROOT / source).exists() for source in copied)
    extras = re.search(r"neurovol\[(.+?)\]", sections["post"])
    assert extras is not None
    declared = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert all(re.search(rf"^{extra} = \[", declared, re.MULTILINE) for extra in extras[1].split(","))
