"""A project on disk: where everything lies, and which steps are done, stale, begun or missing."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

from neurovol.blockwise.ledger import Header, differences, fingerprint, read_ledger
from neurovol.errors import UserError
from neurovol.projectfile import load_settings
from neurovol.settings import ProjectSettings

METHODS = ("cnn2d", "unet3d_sparse", "unet3d_pseudo")
Kind = Literal["done", "begun", "stale", "missing"]


@dataclass(frozen=True)
class Step:
    """One thing to be made: from which inputs, recorded where, lying where."""

    stage: str
    subject: str  # a sample, a method, or nothing for the project as a whole
    inputs: dict[str, Any]
    ledger: Path
    output: Path
    replaces: Path | None = None  # the ledger of an earlier model, if no model has these inputs
    inside: bool = False  # the output lies inside another step's, and is lost when that is built anew
    progress: Path | None = None  # the image of what became of its blocks in the run under way, or the last one

    @property
    def name(self) -> str:
        return f"{self.stage} {self.subject}".strip()

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.inputs)

    @property
    def beside(self) -> Step:
        """The same step built beside its old output, to be swapped in when complete."""
        return replace(self, ledger=_redo(self.ledger), output=_redo(self.output), inside=False)


def _redo(path: Path) -> Path:
    return path.with_name(f"{path.name}.redo")


@dataclass(frozen=True)
class State:
    """How far a step is; `reasons` say what made it stale."""

    kind: Kind
    reasons: tuple[str, ...] = ()
    done: int = 0
    total: int = 0
    quarantined: int = 0
    seconds: float = 0.0  # wall's where it is finished, else of all its blocks together
    voxels: int | None = None  # of a finished step, where it counts them

    @property
    def voxels_per_s(self) -> float | None:
        return self.voxels / self.seconds if self.voxels and self.seconds else None

    @property
    def left_s(self) -> float | None:
        """Seconds of one worker that are left, at the pace so far; None where nothing is, or none is done."""
        if self.kind != "begun" or not self.done or not self.seconds:
            return None
        return (self.total - self.done) * self.seconds / self.done


@dataclass(frozen=True)
class _Ledger:
    """What a ledger says of its step as a whole; of a million blocks it takes seconds to read."""

    header: Header
    finished: dict[str, Any] | None
    done: int
    quarantined: int
    seconds: float


def _ledger(path: Path) -> _Ledger | None:
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return _read(path, stat.st_ino, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=1024)
def _read(path: Path, *_: int) -> _Ledger | None:
    """Read once for what the file is: it is appended to, or replaced."""
    record = read_ledger(path)
    if record is None:
        return None
    return _Ledger(record.header, record.finished, len(record.done), len(record.quarantined), record.seconds)


def state_of(step: Step) -> State:
    """Judge a step by its ledger alone, which is the truth, but for an output that went with what it lay inside."""
    record = _ledger(step.ledger)
    if record is None:
        earlier = _ledger(step.replaces) if step.replaces else None
        if earlier is not None:
            return State("stale", differences(earlier.header.inputs, step.inputs))
        return State("missing")
    if step.inside and record.finished is not None and not step.output.exists():
        return State("missing")
    kind: Kind = "begun"
    reasons: tuple[str, ...] = ()
    if record.header.inputs != step.inputs:
        kind, reasons = "stale", differences(record.header.inputs, step.inputs)
    elif record.finished is not None:
        kind = "done"
    finished = record.finished or {}
    seconds = float(finished.get("seconds", record.seconds))
    voxels = finished.get("voxels")
    return State(kind, reasons, record.done, record.header.total, record.quarantined, seconds, voxels)


def perform(step: Step, work: Callable[[Step], None], *, redo: bool = False) -> None:
    """Bring a step to done: continue it where it lies, or with `redo` build it beside a complete old one and swap.

    Raises UserError where the step is stale and `redo` was not asked for.
    """
    beside = step.beside
    if not step.ledger.exists() and _is_complete(beside):  # death came while the two were being swapped
        _swap(beside, step)
        return
    state = state_of(step)
    if state.kind == "done" and not redo:
        return
    if state.kind == "stale" and not redo:
        raise UserError(stale_text([(step, state)]))
    if state.kind == "missing" and step.inside:
        _remove(step.ledger)
    if state.kind in ("missing", "begun") or not step.ledger.exists():  # nothing complete that it could replace
        work(step)
        return
    record = read_ledger(beside.ledger)
    if record is not None and record.header.inputs != step.inputs:
        _remove(beside.output)
        _remove(beside.ledger)
    if not _is_complete(beside):
        work(beside)
    _swap(beside, step)


def _is_complete(step: Step) -> bool:
    return state_of(step).kind == "done"


def stale_text(stale: list[tuple[Step, State]]) -> str:
    """Which steps (in order) were made from other inputs than the project's, and the way out."""
    lines = [f"{step.name}: {'; '.join(state.reasons)}" for step, state in stale]
    return (
        "Stale, made from other inputs than the project file now gives, and never mixed with new results:\n  "
        + "\n  ".join(lines)
        + f"\nTo build these anew (the old output stays until the new one is complete): --redo {stale[0][0].stage}. "
        "Or change the setting back."
    )


def _swap(new: Step, old: Step) -> None:
    """Put a complete new output in the old one's place; the ledger moves last, as it is the truth.

    It goes on where an earlier one was cut short: the old ledger goes first, and what has moved is not there any more.
    """
    aside = old.output.with_name(f"{old.output.name}.old")
    _remove(old.ledger)
    if new.output.exists():
        _remove(aside)
        if old.output.exists():
            old.output.rename(aside)
        new.output.rename(old.output)
    _remove(aside)
    if new.ledger.exists():  # a ledger inside its output moved with it
        new.ledger.rename(old.ledger)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Replace a small file as a whole, durably: readers see the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


@dataclass(frozen=True)
class Project:
    """A project file and the folder that its results go to."""

    file: Path
    settings: ProjectSettings

    @property
    def root(self) -> Path:
        """What paths in the project file are relative to."""
        return self.file.parent

    @property
    def folder(self) -> Path:
        return self.root / self.settings.store / self.settings.name

    def sample_folder(self, sample: str) -> Path:
        return self.folder / "samples" / sample

    def image(self, sample: str) -> Path:
        return self.sample_folder(sample) / "image.ome.zarr"

    def label(self, sample: str, role: str) -> Path:
        return self.image(sample) / "labels" / role

    def histogram(self, sample: str) -> Path:
        return self.sample_folder(sample) / "histogram.npz"

    def preview(self, sample: str) -> Path:
        return self.sample_folder(sample) / "preview.png"

    def ledger(self, sample: str, step: str) -> Path:
        return self.sample_folder(sample) / "ledgers" / f"{step}.jsonl"

    def progress(self, sample: str, step: str) -> Path:
        """Where the image lies that shows over the sample what became of a step's blocks."""
        return self.sample_folder(sample) / "progress" / f"{step}.ome.zarr"

    def probabilities(self, sample: str, model: str, *, test_boxes: bool = False) -> Path:
        """Where a model's probabilities for a sample lie; baselines cover the test boxes only."""
        network = model.split("_")[0].split("-")[0]
        scope = ".test" if test_boxes else ""
        return self.sample_folder(sample) / f"{network}@{model}{scope}.ome.zarr"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.json"

    @property
    def report(self) -> Path:
        return self.folder / "report.html"

    @property
    def report_ledger(self) -> Path:
        return self.folder / "ledgers" / "report.jsonl"

    def model(self, method: str, digest: str) -> Path:
        """The folder of the model with these inputs; one of today's date where there is none yet."""
        found = sorted((self.folder / "models").glob(f"{method}-*-{digest[:8]}"))
        return found[0] if found else self.folder / "models" / f"{method}-{date.today():%Y%m%d}-{digest[:8]}"

    @property
    def current(self) -> dict[str, str]:
        """Which model of each method reports and viewers show."""
        file = self.folder / "state.json"
        if not file.exists():
            return {}
        current: dict[str, str] = json.loads(file.read_text(encoding="utf-8"))["current"]
        return current

    def promote(self, method: str, model: str) -> None:
        """Make `model` the current one of its method."""
        current = {**self.current, method: model}
        write_atomically(self.folder / "state.json", json.dumps({"current": current}, indent=1))


def open_project(file: Path, overrides: dict[str, Any] | None = None) -> Project:
    """Read and check a project file; see `load_settings` for what can be wrong."""
    return Project(file.absolute(), load_settings(file, overrides))
