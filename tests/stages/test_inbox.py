"""Samples that arrive: done as a declared sample is, beside it, and known by stores and ledgers alone."""

import os
import re
import shutil
from pathlib import Path

import pytest

from neurovol.blockwise.ledger import Header, Ledger
from neurovol.cli import main
from neurovol.errors import UserError
from neurovol.project import Project, open_project, state_of
from neurovol.stages.arrivals import Arrival, arrivals
from neurovol.stages.inbox import Standing, is_being_written, standing, steps_with
from tests.arriving import arrive, write_model, write_project
from tests.tiny import contents

STORE = Path("stores/lab/samples/m1")


def opened(file: Path) -> tuple[Project, Arrival]:
    project = open_project(file)
    return project, arrivals(file.parent / "arrivals")[0]


def stands(file: Path) -> Standing:
    return standing(*opened(file))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a project whose one arrival was done; not to be changed."""
    file = write_project(tmp_path_factory.mktemp("inbox"))
    arrive(file)
    assert stands(file).kind == "to do"
    assert main(["run", str(file), "--sample", "m1"]) == 0
    return file


@pytest.fixture
def done(finished: Path, tmp_path: Path) -> Path:
    """The file of a copy of it."""
    shutil.copytree(finished.parent, tmp_path / "copy")
    return tmp_path / "copy" / finished.name


def test_an_arrival_lies_under_its_name_and_is_done(finished: Path) -> None:
    assert stands(finished).kind == "done"
    assert (finished.parent / STORE / "report.html").is_file()
    assert contents(finished.parent / STORE / "unet3d@unet3d-1.ome.zarr")
    assert not (finished.parent / "stores/lab/report.html").exists()


def test_without_its_report_it_is_not_done_and_keeps_its_key(done: Path) -> None:
    before = stands(done)
    (done.parent / STORE / "report.html").unlink()
    assert stands(done) == Standing("to do", before.key)


def test_what_changed_after_it_was_done_is_stale_and_has_another_key(done: Path) -> None:
    before = stands(done)
    os.utime(done.parent / "arrivals/m1.tif", (1e9, 1e9))
    changed = stands(done)
    assert changed.kind == "stale"
    assert "convert m1" in changed.why
    assert changed.key != before.key


def test_another_pinned_model_is_to_be_done_over_the_same_image(done: Path) -> None:
    before = stands(done)
    models = done.parent / "stores/lab/models"
    write_model(models / "unet3d-2", seed=1)
    done.write_text(done.read_text().replace('"unet3d-1"', '"unet3d-2"'))
    again = stands(done)
    assert again.kind == "to do"
    assert again.key != before.key
    steps = steps_with(open_project(done), "m1")
    assert state_of(steps.convert("m1")).kind == "done"
    assert state_of(steps.segment("m1")).kind == "missing"


def test_what_cannot_be_read_says_why_and_keeps_its_key(tmp_path: Path) -> None:
    file = write_project(tmp_path)
    (tmp_path / "arrivals/m1.tif").write_bytes(b"no picture")
    found = stands(file)
    assert found.kind == "unreadable"
    assert "m1.tif" in found.why
    assert found.key == stands(file).key
    assert found.key.startswith("lab/m1@")


def test_it_is_being_written_while_a_driver_has_a_ledger_of_it_open(done: Path) -> None:
    project, arrival = opened(done)
    assert not is_being_written(project, arrival)
    step = steps_with(project, "m1").segment("m1")
    for ledger in (step.ledger, step.beside.ledger):
        with Ledger(ledger, Header(step.name, step.inputs, 1)):
            assert is_being_written(project, arrival)
    assert not is_being_written(project, arrival)


def test_a_store_of_its_own_makes_another_key(done: Path) -> None:
    before = stands(done)
    shutil.copytree(done.parent / "stores", done.parent / "trial")
    done.write_text(done.read_text().replace('name = "lab"', 'name = "lab"\nstore = "trial"'))
    again = stands(done)
    assert again.kind == "done"
    assert again.key != before.key


def test_status_and_verify_of_a_project_tell_of_its_inbox_too(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (done.parent / "arrivals/bad.tif").write_bytes(b"no picture")
    assert main(["status", str(done)]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^m1.tif, in the inbox\n.*\nconvert m1 +done .*\nsegment m1 +done .*\nreport +done ", said, re.M)
    assert re.search(r"^bad.tif, in the inbox: .*not a readable TIFF", said, re.M)
    prediction = done.parent / STORE / "unet3d@unet3d-1.ome.zarr"
    assert main(["verify", str(done)]) == 0
    assert re.search(rf"^{prediction}: all \d+ shards are whole", capsys.readouterr().out, re.M)
    shard = next(file for file in prediction.glob("0/c/**/*") if file.is_file())
    shard.write_bytes(shard.read_bytes()[:-1])
    assert main(["verify", str(done)]) == 1
    assert str(shard) in capsys.readouterr().out
    assert main(["verify", str(done), "--repair"]) == 0


def test_a_model_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    file = write_project(tmp_path, ('model = "unet3d-1"', 'model = "unet3d-9"'))
    arrive(file)
    with pytest.raises(UserError, match=r"inbox.model = 'unet3d-9': no finished model at .*; .* one of unet3d-1"):
        stands(file)


def test_a_sample_that_is_neither_declared_nor_arrived_is_named(tmp_path: Path) -> None:
    project = open_project(write_project(tmp_path))
    with pytest.raises(UserError, match=r'there is no sample "m9": .* nothing of that name'):
        steps_with(project, "m9")
