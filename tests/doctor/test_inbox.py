"""A project whose samples all arrive in its inbox, examined before the night in which they do."""

import shutil
from pathlib import Path
from typing import Any, NoReturn

import pytest

import neurovol.doctor.inbox
from neurovol.cli import main
from neurovol.doctor.checks import examine
from neurovol.doctor.finding import Finding
from neurovol.networks.checkpoint import WEIGHTS
from neurovol.project import open_project
from neurovol.stages.inbox import inbox_steps
from neurovol.stages.order import actions
from tests.arriving import arrive, write_project
from tests.tiny import write_tiny


@pytest.fixture(autouse=True)
def _no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)


def examined(file: Path, **overrides: Any) -> dict[str, list[Finding]]:
    """What is found of a project, by the check's name."""
    found: dict[str, list[Finding]] = {}
    for one in examine(file, overrides, workers=False):
        found.setdefault(one.name, []).append(one)
    return found


def failures(found: dict[str, list[Finding]]) -> list[str]:
    return [one.text for every in found.values() for one in every if one.level == "fail"]


def test_a_project_that_waits_for_its_first_sample_is_in_order(tmp_path: Path) -> None:
    file = write_project(tmp_path)
    found = examined(file)
    assert failures(found) == []
    (inbox,) = found["inbox"]
    model = tmp_path / "stores" / "lab" / "models" / "unet3d-1"
    assert inbox.line.startswith("ok       inbox ")
    assert inbox.text == f"{tmp_path / 'arrivals'}: 0 samples to be done, 0 done; model {model}"
    assert [found[name][0].level for name in ("sources", "run", "room")] == ["skipped", "skipped", "ok"]


def test_folder_and_model_are_each_missed(tmp_path: Path) -> None:
    file = write_project(tmp_path, ('"unet3d-1"', '"gone"'))
    (tmp_path / "arrivals").rmdir()
    found = examined(file)
    folder, model = found["inbox"]
    assert folder.level == model.level == "fail"
    assert f"{tmp_path / 'arrivals'}: the inbox cannot be read: No such file" in folder.text
    assert "inbox.model = 'gone': no finished model" in model.text
    assert "unet3d-1" in model.text  # what it could name
    assert found["room"][0].level == "skipped"  # nobody knows what is to be written


def test_a_model_without_its_weights_is_found_before_anything_arrives(tmp_path: Path) -> None:
    file = write_project(tmp_path)
    (tmp_path / "stores" / "lab" / "models" / "unet3d-1" / WEIGHTS).unlink()
    (inbox,) = examined(file)["inbox"]
    assert inbox.level == "fail"
    assert f"{WEIGHTS} is not" in inbox.text


def test_each_thing_that_can_be_no_sample_is_a_warning(tmp_path: Path) -> None:
    file = write_project(tmp_path)
    arrive(file, "m1")
    (tmp_path / "arrivals" / "empty").mkdir()
    (tmp_path / "arrivals" / "m2.tif").write_bytes(b"II*\0")
    (tmp_path / "arrivals" / "µ.tif").write_bytes(b"")
    found = examined(file)
    assert [one.level for one in found["inbox"]] == ["warn", "warn", "warn", "ok"]
    for one, start, why in zip(
        found["inbox"],
        ("empty", "m2.tif", "µ.tif"),
        ("holds no TIFF", "not a readable TIFF", "rename it"),
        strict=False,
    ):
        assert one.text.startswith(f"{start} can be no sample: ")
        assert why in one.text
    assert ": 1 samples to be done" in found["inbox"][-1].text
    assert failures(found) == []


def test_what_may_not_be_read_ends_the_inbox_and_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_project(tmp_path)
    arrive(file, "m1")

    def refused(*_: Any) -> NoReturn:
        raise PermissionError(13, "Permission denied", "/drop/m1/zarr.json")

    for what in ("arrivals", "load_checkpoint", "inbox_steps"):
        with monkeypatch.context() as patch:
            patch.setattr(neurovol.doctor.inbox, what, refused)
            (inbox,) = examined(file)["inbox"]
        assert inbox.level == "fail"
        assert inbox.text.startswith("/drop/m1/zarr.json: user ")
        assert "chmod" in inbox.way_out


def test_what_a_sample_would_be_refused_for_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.arriving.VOXEL_SIZE_UM", (1.0, 1.0, 1.0))  # the model's; the phantom keeps its own
    file = write_project(tmp_path)
    arrive(file, "m1")
    refused, summary = examined(file)["inbox"]
    assert refused.level == "fail"
    assert refused.text.startswith("m1.tif: ")
    assert "trained at a voxel size of" in refused.text
    assert ": 0 samples to be done" in summary.text
    crowded, _ = examined(file, **{"cluster.allowed_bytes": 500_000_000, "cluster.workers": 64})["inbox"]
    assert "predicting takes at least" in crowded.text


def test_room_is_reckoned_for_what_lies_in_the_inbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_project(tmp_path)
    arrive(file, "m1")
    arrive(file, "m2")
    wanted: list[int] = []

    def summed(_: Path, plans: Any) -> list[Finding]:
        wanted.append(sum(plan.disk.bytes for plan in plans))
        return []

    monkeypatch.setattr("neurovol.doctor.checks.check_room", summed)
    examined(file)
    each = [steps for steps in inbox_steps(open_project(file)).values() if not isinstance(steps, str)]
    assert len(each) == 2
    assert wanted == [sum(plan.disk.bytes for steps in each for a in actions(steps) for plan in a.plan())]


def test_an_inbox_beside_declared_samples_is_looked_at_too(tmp_path: Path) -> None:
    file = write_tiny(tmp_path)
    file.write_text(f'{file.read_text()}\n[inbox]\nfolder = "arrivals"\nmodel = "gone"\n', encoding="utf-8")
    found = examined(file)
    assert [one.level for one in found["inbox"]] == ["fail", "fail"]
    assert found["run"][0].level == "ok"
    assert found["room"][0].level == "ok"


def test_a_sample_that_is_done_is_done_until_it_changes(tmp_path: Path) -> None:
    file = write_project(tmp_path)
    stack = arrive(file, "m1")
    assert main(["run", str(file), "--sample", "m1"]) == 0
    found = examined(file)
    assert [one.level for one in found["inbox"]] == ["ok"]
    assert ": 0 samples to be done, 1 done" in found["inbox"][0].text
    assert "nothing is left to be written there" in found["room"][0].text
    shutil.move(arrive(file, "m2", (18, 70, 80)), stack)
    changed, _ = examined(file)["inbox"]
    assert changed.level == "warn"
    assert changed.text.startswith("m1.tif is left alone: Stale")
    assert "--redo convert" in changed.text
