"""The whole pipeline on the tiny project: what exists at the end, what a second run does, what death leaves."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import zarr

from neurovol.blockwise.ledger import Header, Ledger, read_ledger
from neurovol.cli import main
from neurovol.geometry import Box
from neurovol.networks.checkpoint import load_checkpoint
from neurovol.project import METHODS, open_project, state_of
from neurovol.stages.order import actions
from neurovol.stages.steps import Steps
from neurovol.volume.omezarr import VolumeReader, open_volume
from neurovol.volume.phantom import PhantomSource
from tests.tiny import contents, write_tiny


def steps_of(file: Path) -> Steps:
    return Steps(open_project(file))


def test_every_step_is_done_at_the_end(finished: Path) -> None:
    states = {a.step.name: state_of(a.step).kind for a in actions(steps_of(finished))}
    assert set(states.values()) == {"done"}
    assert list(states) == [
        "convert a", "annotate a train", "convert b", "annotate b test", "pseudolabel cnn2d", "pseudolabel a",
        "train unet3d_pseudo", "train unet3d_sparse", "segment a", "segment b", "evaluate b cnn2d",
        "evaluate b unet3d_sparse", "evaluate", "report",
    ]  # fmt: skip


def test_the_stored_image_is_the_source_and_its_levels_shrink(finished: Path) -> None:
    steps = steps_of(finished)
    info = open_volume(steps.project.image("a"))
    whole = Box.of_shape((20, 90, 100))
    source = PhantomSource((20, 90, 100), 1)
    assert np.array_equal(VolumeReader(str(info.path)).read(whole), source.read(whole))
    assert info.level_shape(info.levels - 1) == (20, 45, 50)
    low, high = (info.attributes["normalisation"][key][0] for key in ("low", "high"))
    voxels = np.sort(source.read(whole)[source.read(whole) > 0])
    assert low == voxels[int(np.ceil(0.01 * voxels.size)) - 1]
    assert high == voxels[int(np.ceil(0.998 * voxels.size)) - 1]


def test_annotations_lie_apart_in_the_images_labels(finished: Path) -> None:
    project = steps_of(finished).project
    train = VolumeReader(str(project.label("a", "train"))).read(Box.of_shape((20, 90, 100)))
    assert {int(z) for z in np.unique(np.nonzero(train)[0])} == {0, 4, 8, 12, 16}
    truth = PhantomSource((20, 90, 100), 1).truth(Box.of_shape((20, 90, 100)))
    assert np.array_equal(train[8], truth[8] + 1)
    test = VolumeReader(str(project.label("b", "test"))).read(Box.of_shape((18, 70, 90)))
    assert (test[2:16, 10:70, 15:85] > 0).all()
    assert np.count_nonzero(test) == 14 * 60 * 70


def test_pseudo_labels_are_probabilities_over_the_training_boxes(finished: Path) -> None:
    steps = steps_of(finished)
    reader = VolumeReader(str(steps.pseudolabel("a").output))
    p = reader.read(Box.of_shape((20, 90, 100)))
    assert p.dtype == np.uint8
    assert len(np.unique(p)) > 10
    assert [tuple(map(tuple, b)) for b in open_volume(Path(reader.path)).attributes["boxes"]] == [
        ((0, 20), (0, 90), (0, 100))
    ]


def test_metrics_have_the_promised_form_and_add_up(finished: Path) -> None:
    metrics = json.loads(steps_of(finished).project.metrics.read_text())
    assert metrics["threshold"] == 0.5
    assert list(metrics["methods"]) == list(METHODS)
    for values in metrics["methods"].values():
        assert {"dice", "precision", "recall", "average_precision", "confusion"} <= set(values)
        c = values["confusion"]
        assert sum(c.values()) == 14 * 60 * 70
        assert values["dice"] == pytest.approx(2 * c["tp"] / (2 * c["tp"] + c["fp"] + c["fn"]))


def test_metrics_are_those_of_the_stored_probabilities(finished: Path) -> None:
    steps = steps_of(finished)
    box = steps.samples["b"].boxes("test")[0]
    truth = PhantomSource((18, 70, 90), 2, 1.5).truth(box) > 0
    metrics = json.loads(steps.project.metrics.read_text())["methods"]
    for method, step in steps.predictions("b").items():
        predicted = VolumeReader(str(step.output)).read(box) / 255 >= 0.5
        assert metrics[method]["confusion"]["tp"] == np.count_nonzero(truth & predicted)
        assert metrics[method]["confusion"]["fp"] == np.count_nonzero(~truth & predicted)


def test_checkpoints_say_what_they_were_trained_on(finished: Path) -> None:
    checkpoint = load_checkpoint(steps_of(finished).checkpoint("unet3d_pseudo"), "unet3d")
    assert checkpoint.meta.voxel_size_um == (2.0, 0.88, 0.88)
    assert checkpoint.meta.fingerprint == steps_of(finished).learn_unet3d("unet3d_pseudo").fingerprint
    assert checkpoint.network["base"] == 2


def test_the_report_shows_the_figures(finished: Path) -> None:
    html = steps_of(finished).project.report.read_text(encoding="utf-8")
    assert "U-Net with pseudo-labels" in html
    assert not re.search(r'(src|href)="https?:', html)


def test_a_second_run_has_nothing_to_do(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.parent.rglob("*")}
    assert main(["run", str(finished)]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in finished.parent.rglob("*")} == before


def test_every_step_of_blocks_leaves_an_image_of_them_beside_the_sample(finished: Path) -> None:
    steps = steps_of(finished)
    made = [steps.convert("a"), steps.annotate("a", "train"), steps.pseudolabel("a"), steps.segment("b")]
    made.append(steps.baseline("b", "cnn2d"))
    for step in made:
        assert step.progress is not None
        assert step.progress.parent == steps.project.sample_folder(step.subject.split()[0]) / "progress"
        states = set(zarr.open_array(step.progress / "labels/states/0", mode="r")[...].ravel().tolist())
        assert states & {1, 3}  # done, in more or less time
        assert not states & {2, 4}  # skipped, set aside
    assert len({step.progress for step in made}) == len(made)


def test_status_prints_every_step(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(finished)]) == 0
    out = capsys.readouterr().out
    assert "train unet3d_sparse" in out
    assert "missing" not in out
    assert "voxels/s" in out
    assert "million" in next(line for line in out.splitlines() if "segment a" in line)


def test_status_tells_what_is_left_of_a_begun_step_and_what_is_quarantined(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = steps_of(copied).segment("a").ledger
    header, *rows = [line for line in ledger.read_bytes().splitlines(True) if b'"finished"' not in line]
    ledger.write_bytes(b"".join([header, *rows[:2]]))
    with Ledger(ledger, Header("segment a", steps_of(copied).segment("a").inputs, len(rows))) as opened:
        opened.append(5, "quarantined", attempt=3, box=[[0, 1]] * 3, error="Traceback\nMemoryError")
    assert main(["status", str(copied)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "of one worker left" in said
    assert "1 quarantined, see" in said
    progress = f"blocks so far over the image: {steps_of(copied).segment('a').progress}"
    assert progress.replace(" ", "") in said.replace(" ", "")  # a table folds it


@pytest.mark.slow
def test_a_changed_setting_is_stale_and_refused_until_redone(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = steps_of(copied).checkpoint("unet3d_pseudo")
    copied.write_text(copied.read_text().replace("[train]", "[train]\nalpha = 0.5"))
    assert main(["run", str(copied)]) == 2
    error = capsys.readouterr().err
    assert "train.alpha 0.3 → 0.5" in error
    assert "--redo train" in error
    assert main(["status", str(copied)]) == 0
    assert "stale" in capsys.readouterr().out
    assert main(["run", str(copied), "--redo", "train"]) == 0
    steps = steps_of(copied)
    assert steps.project.current["unet3d_pseudo"] == steps.checkpoint("unet3d_pseudo").name != old.name
    assert old.exists()
    assert {state_of(a.step).kind for a in actions(steps)} == {"done"}


def test_redoing_a_conversion_swaps_in_the_same_bytes(copied: Path) -> None:
    folder = steps_of(copied).project.sample_folder("a")
    before = contents(folder)
    assert main(["convert", str(copied), "--sample", "a", "--redo", "convert"]) == 0
    assert contents(folder) == before
    assert not list(folder.rglob("*.redo")) + list(folder.rglob("*.old"))


@pytest.mark.slow
def test_a_given_checkpoint_replaces_training(finished: Path, tmp_path: Path) -> None:
    model = steps_of(finished).checkpoint("unet3d_pseudo")
    file = write_tiny(tmp_path, ("[segment]", f'[segment]\ncheckpoint = "{model}"\nsamples = ["b"]'))
    assert main(["run", str(file)]) == 0
    steps = steps_of(file)
    assert not (steps.project.folder / "models").exists()
    whole = Box.of_shape((18, 70, 90))
    ours, theirs = (VolumeReader(str(s.segment("b").output)).read(whole) for s in (steps, steps_of(finished)))
    assert np.array_equal(ours, theirs)
    assert list(json.loads(steps.project.metrics.read_text())["methods"]) == ["unet3d_pseudo"]


def test_a_dry_run_prints_the_plan_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_tiny(tmp_path)
    assert main(["run", str(file), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "halo [24, 24, 24] (reach [23, 23, 23])" in out
    assert "blocks    8" in out
    assert list(tmp_path.iterdir()) == [file]


def test_steps_count_the_blocks_that_were_planned(finished: Path) -> None:
    record = read_ledger(steps_of(finished).segment("a").ledger)
    assert record is not None
    assert record.header.total == len(record.done)
    assert record.finished is not None
    assert record.finished["voxels"] == 20 * 90 * 100


@pytest.mark.slow
@pytest.mark.parametrize("after", ["segment a", "convert a", "pseudolabel a", "train unet3d_pseudo"])
def test_a_run_killed_at_any_stage_goes_on_to_the_same_bytes(finished: Path, tmp_path: Path, after: str) -> None:
    file = write_tiny(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-m", "neurovol.cli", "run", str(file)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _wait_for(file, after)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    assert main(["run", str(file)]) == 0
    ours, theirs = steps_of(file).project.folder, steps_of(finished).project.folder
    assert contents(ours).keys() == contents(theirs).keys()
    assert contents(ours) == contents(theirs)


def _wait_for(file: Path, name: str) -> None:
    """Until the ledger of a step has its first row."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        step = next(a.step for a in actions(steps_of(file)) if a.step.name == name)
        record = read_ledger(step.ledger)
        if record is not None and record.rows:
            return
        time.sleep(0.02)
    raise AssertionError(f"{name} never began")
