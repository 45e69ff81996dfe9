"""What both trainings share: samples to learn from, and a network brought from its first step to a checkpoint."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from neurovol.blockwise.cluster import cores
from neurovol.blockwise.ledger import Header, Ledger, read_ledger
from neurovol.errors import UserError
from neurovol.geometry import Box
from neurovol.networks.checkpoint import (
    TRAINING,
    Meta,
    Method,
    load_training_state,
    save_checkpoint,
    save_training_state,
)
from neurovol.networks.cnn2d import CNN2DSpec
from neurovol.networks.normalise import RULE
from neurovol.networks.precision import Precision, need_device
from neurovol.networks.unet3d import UNet3DSpec
from neurovol.progress import Progress, Report
from neurovol.project import Step, state_of
from neurovol.stages.predict import device, normalisation_of
from neurovol.stages.segment import need_image
from neurovol.stages.steps import Steps
from neurovol.training.loop import LossOf, TrainStep, reestimate_batch_norm, train
from neurovol.training.prefetch import prefetched
from neurovol.training.samples import TrainingSample
from neurovol.volume.omezarr import VolumeReader

log = logging.getLogger(__name__)

CURVE_POINTS = 200  # rows that a training leaves in its ledger, whatever its length
NORM_BATCHES = 32  # batches over which batch-norm statistics are averaged at the end
REPORT_SECONDS = 0.5


@dataclass(frozen=True)
class Unlabelled:
    """Reads an annotation where there is none: all voxels 0."""

    def read(self, box: Box) -> NDArray[np.uint8]:
        return np.zeros(box.shape, np.uint8)


def training_samples(steps: Steps, *, pseudo: bool) -> list[TrainingSample]:
    """The samples to learn from, `pseudo` with their pseudo-labels. UserError where something is missing."""
    if not steps.with_role("train"):
        raise UserError(
            f'{steps.project.file}: no annotation has role = "train", so there is nothing to learn from; '
            "declare one, or give a trained model as segment.checkpoint"
        )
    _check_alike(steps)
    return [_training_sample(steps, name, pseudo) for name in steps.to_learn_from]


def _training_sample(steps: Steps, name: str, pseudo: bool) -> TrainingSample:
    need_image(steps, name)
    view, project = steps.samples[name], steps.project
    gap = project.settings.train.test_gap
    labelled = "train" in view.annotations
    labels = steps.pseudolabel(name) if pseudo else None
    if labels is not None and state_of(labels).kind != "done":
        raise UserError(
            f'{labels.output}: sample "{name}" has no pseudo-labels of the current settings; '
            "run `neurovol pseudolabel` first, or `neurovol run` for everything"
        )
    return TrainingSample(
        name,
        view.shape,
        tuple(range(len(view.channels))),
        image=VolumeReader(str(project.image(name))),
        annotation=VolumeReader(str(project.label(name, "train"))) if labelled else Unlabelled(),
        normalisation=normalisation_of(project.image(name)),
        boxes=view.training_boxes,
        pseudo=VolumeReader(str(labels.output)) if labels else None,
        inferred=steps.inferred(name) if labels else (),
        excluded=tuple(box.grown((gap, gap, gap)) for box in view.boxes("test")),
        annotated=view.boxes("train"),
    )


def _check_alike(steps: Steps) -> None:
    """One model learns from samples of one voxel size and one number of channels."""
    first, *others = (steps.samples[name] for name in steps.to_learn_from)
    for other in others:
        if len(other.channels) != len(first.channels) or any(
            abs(a - b) > 0.01 * b for a, b in zip(other.voxel_size_um, first.voxel_size_um, strict=True)
        ):
            raise UserError(
                f'samples "{first.name}" and "{other.name}" cannot train one model: voxel sizes '
                f"{first.voxel_size_um} and {other.voxel_size_um} µm, channels {list(first.channels)} and "
                f"{list(other.channels)}; sizes may differ by 1 %, and as many channels are needed"
            )


def touching(steps: Steps) -> Iterator[str]:
    """Warnings: training boxes that touch a test box with no gap kept, so that scores may flatter."""
    if steps.project.settings.train.test_gap:
        return
    for name, view in steps.samples.items():
        for test in view.boxes("test"):
            if any(box.touches(test) for box in view.training_boxes):
                yield (
                    f"sample {name}: a training box touches the test box {[list(p) for p in test.pairs]}, so voxels "
                    "next to the border are much alike on both sides; train.test_gap keeps a distance"
                )


@dataclass(frozen=True)
class Lesson:
    """A network to be trained: what differs between the two."""

    step: Step
    method: Method
    spec: CNN2DSpec | UNet3DSpec
    build: Callable[[], nn.Module]
    batch_at: Callable[[int], tuple[Tensor, ...]]
    loss_of: LossOf
    steps: int
    learning_rate: float
    checkpoint_every: int
    seed: int
    choose: Callable[[], Precision]
    voxel_size_um: tuple[float, float, float]
    log_prior_odds: float = 0.0


def learn(lesson: Lesson, step: Step, report: Report) -> None:
    """Train from the first step, or from where an earlier run stopped, to a checkpoint; bit-equal on CPU."""
    folder = step.output
    folder.mkdir(parents=True, exist_ok=True)  # from here on its name, with today's date, is fixed
    record = read_ledger(step.ledger)
    chosen = record.header.chosen if record else _chosen(lesson)
    every = max(1, lesson.steps // CURVE_POINTS)
    with Ledger(step.ledger, Header(step.name, step.inputs, -(-lesson.steps // every), chosen)) as ledger:
        precision = Precision.from_json(ledger.header.chosen["precision"])
        torch.set_num_threads(ledger.header.chosen["threads"])
        torch.manual_seed(lesson.seed)
        need_device(ledger.header.chosen["device"])
        model = lesson.build().to(ledger.header.chosen["device"])
        precision.lay_out_weights(model)
        optimizer = torch.optim.Adam(model.parameters(), lr=lesson.learning_rate)
        saved = load_training_state(folder, model, optimizer)
        first, notes = saved or (0, {"pending": [], "seconds": 0.0})
        keeper = _Keeper(lesson, ledger, folder, every, list(notes["pending"]), notes["seconds"], report, first)
        with prefetched(lesson.batch_at, first, lesson.steps) as batch_at:
            for done in train(model, optimizer, batch_at, lesson.loss_of, first, lesson.steps, precision, lesson.seed):
                keeper.keep(done, model, optimizer)
        _finish(lesson, ledger, model, precision, folder, keeper.seconds)


def _chosen(lesson: Lesson) -> dict[str, Any]:
    """What is decided once and kept on resume; sums round otherwise with other threads."""
    torch.set_num_threads(cores())
    return {"precision": lesson.choose().to_json(), "device": device(), "threads": cores()}


@dataclass
class _Keeper:
    """Keeps the loss curve in the ledger and the training's state on disk, and reports."""

    lesson: Lesson
    ledger: Ledger
    folder: Path
    every: int
    pending: list[float]
    seconds: float
    report: Report
    first: int
    started: float = 0.0
    said: float = 0.0

    def keep(self, done: TrainStep, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.pending.append(done.loss)
        self.seconds += done.seconds
        if done.steps_done % self.every == 0 or done.steps_done == self.lesson.steps:
            self.ledger.append(done.steps_done, "done", loss=float(np.mean(self.pending)))
            self.pending.clear()
        if done.steps_done % self.lesson.checkpoint_every == 0 and done.steps_done < self.lesson.steps:
            notes = {"pending": self.pending, "seconds": self.seconds}
            save_training_state(self.folder, model, optimizer, done.steps_done, notes)
        self._say(done)

    def _say(self, done: TrainStep) -> None:
        now = time.monotonic()
        self.started = self.started or now - done.seconds
        if now - self.said > REPORT_SECONDS or done.steps_done == self.lesson.steps:
            self.said = now
            here = done.steps_done - self.first
            self.report(
                Progress(
                    self.ledger.header.step,
                    done.steps_done,
                    self.lesson.steps,
                    "steps",
                    here,
                    now - self.started,
                    note=f"loss {done.loss:.4f}",
                )
            )


def _finish(
    lesson: Lesson, ledger: Ledger, model: nn.Module, precision: Precision, folder: Path, seconds: float
) -> None:
    images = (lesson.batch_at(lesson.steps + i)[0] for i in range(NORM_BATCHES))
    reestimate_batch_norm(model, images, precision)
    meta = Meta(
        lesson.voxel_size_um,
        lesson.spec.channels,
        RULE,
        ledger.header.fingerprint,
        precision,
        lesson.log_prior_odds,
        {"steps": lesson.steps, "seconds": round(seconds, 1), "method": lesson.step.subject},
    )
    save_checkpoint(folder, lesson.method, lesson.spec.to_json(), model.state_dict(), meta)
    (folder / TRAINING).unlink(missing_ok=True)
    ledger.finish(seconds=round(seconds, 3), steps=lesson.steps)


def curve(ledger: Path) -> tuple[list[int], list[float]]:
    """Steps and losses of a training, from its ledger."""
    record = read_ledger(ledger)
    rows = sorted(record.rows.items()) if record else []
    return [n for n, _ in rows], [row["loss"] for _, row in rows]
