"""Scripts of deploy/ that no test runs whole: their shell parses, and what they name is there."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
DEFINITION = DEPLOY / "apptainer.def"
SECTION = re.compile(r"^%(\w+)\n(.*?)(?=^%|\Z)", re.MULTILINE | re.DOTALL)


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


def test_the_image_copies_what_there_is_and_installs_what_can_be_asked_for() -> None:
    text = DEFINITION.read_text(encoding="utf-8")
    sections = dict(SECTION.findall(text))
    assert text.startswith("Bootstrap: docker\nFrom: ")
    assert set(sections) == {"files", "post", "environment", "runscript", "test", "labels"}
    for name in ("post", "environment", "runscript", "test"):
        check_shell(sections[name])
    copied = {source for line in sections["files"].split("\n") for source in line.split()[:-1]}
    assert copied == {"pyproject.toml", "README.md", "LICENSE", "neurovol", "flows", "deploy"}
    assert all((ROOT / source).exists() for source in copied)
    extras = re.search(r"neurovol\[(.+?)\]", sections["post"])
    assert extras is not None
    declared = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert all(re.search(rf"^{extra} = \[", declared, re.MULTILINE) for extra in extras[1].split(","))
