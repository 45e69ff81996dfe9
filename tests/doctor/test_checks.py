"""The whole examination, as a person at a terminal has it."""

from pathlib import Path

import pytest

from neurovol.cli import main
from neurovol.doctor.checks import examine
from neurovol.doctor.finding import Finding
from tests.tiny import write_tiny


@pytest.fixture(autouse=True)
def _no_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))


def named(findings: list[Finding], name: str) -> list[Finding]:
    return [one for one in findings if one.name == name]


def test_a_project_in_order_is_all_ok_or_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(write_tiny(tmp_path))]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines} == {"ok", "skipped"}
    for name in ("python", "packages", "server", "project", "sources", "store", "run", "room", "workers"):
        assert any(line.split()[1] == name for line in lines), name
    assert [path.name for path in tmp_path.iterdir()] == ["project.toml"]


def test_without_a_project_only_the_machine_is_looked_at(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    named = [line.split()[1] for line in capsys.readouterr().out.splitlines()]
    assert named == ["python", "packages", "compiled", "server"]


def test_a_wrong_project_file_is_a_finding_and_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_tiny(tmp_path, ("seed = 1", "seed = -1"))
    assert main(["doctor", str(file), "--no-workers"]) == 1
    said = capsys.readouterr()
    assert f"fail     project      {file}: samples.0.phantom.seed = -1" in said.out
    assert "1 of 5 checks failed" in said.err
    assert "Traceback" not in said.err


def test_a_source_that_is_missing_is_named(tmp_path: Path) -> None:
    file = write_tiny(tmp_path, ("phantom = {shape = [20, 90, 100], seed = 1}", 'source = "gone.tif"'))
    file.write_text(file.read_text().replace('sample = "a"\nsource = "phantom"', 'sample = "a"\nsource = "drawn.tif"'))
    found = list(examine(file, workers=False))
    (sources,) = named(found, "sources")
    assert sources.level == "fail"
    assert "gone.tif" in sources.text
    assert named(found, "run")[0].level == "skipped"
    assert named(found, "store")[0].level == "ok"  # what does not need the sources is looked at


def test_what_a_stage_would_refuse_hours_later_is_found(tmp_path: Path) -> None:
    large = {"train.base_channels": 64, "cluster.allowed_bytes": 500_000_000}
    found = list(examine(write_tiny(tmp_path), large, workers=False))
    (run,) = named(found, "run")
    assert run.level == "fail"
    assert "predicting takes at least" in run.text
    assert named(found, "room")[0].level == "skipped"


def test_nothing_to_learn_from_is_found(tmp_path: Path) -> None:
    file = write_tiny(tmp_path, ("every = 4", 'every = 4\nrole = "test"'))
    (run,) = named(list(examine(file, workers=False)), "run")
    assert run.level == "fail"
    assert 'no annotation has role = "train"' in run.text


def test_workers_are_left_out_where_that_is_asked_for(tmp_path: Path) -> None:
    (workers,) = named(list(examine(write_tiny(tmp_path), workers=False)), "workers")
    assert workers.level == "skipped"


def test_a_queue_that_this_machine_cannot_submit_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = list(examine(write_tiny(tmp_path), {"cluster.kind": "slurm"}))
    (slurm,) = named(found, "slurm")
    assert slurm.level == "fail"
    assert "sbatch, squeue, scancel, sinfo, scontrol, which this machine does not have" in slurm.text
    assert named(found, "workers") == [Finding("skipped", "workers", "the queue would not take their jobs")]


def test_a_model_that_is_not_there_is_found(tmp_path: Path) -> None:
    found = list(examine(write_tiny(tmp_path), {"segment.checkpoint": "no-model"}, workers=False))
    (run,) = named(found, "run")
    assert run.level == "fail"
    assert "no-model" in run.text
