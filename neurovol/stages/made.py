"""Every volume of a project that is finished, with the task that writes its level 0 anew: for verification."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from neurovol.blockwise.attempt import BlockTask
from neurovol.blockwise.ledger import read_ledger
from neurovol.project import Step, state_of
from neurovol.stages.annotate import annotating
from neurovol.stages.predict import Prediction, predicting
from neurovol.stages.pseudolabel import pseudolabels
from neurovol.stages.segment import baseline, segmentation
from neurovol.stages.steps import BASELINES, Steps
from neurovol.stages.tissue import tissue_path
from neurovol.stages.verify import Original, copying


@dataclass(frozen=True)
class Made:
    """A finished volume."""

    name: str  # as a step is called
    path: Path
    level_0: Callable[[], BlockTask] | None  # None where no single block can be made anew
    way_out: str = ""  # then: what mends it
    original: Original | None = None  # to be compared with, where that is asked for


def volumes(steps: Steps, sample: str | None = None) -> Iterator[Made]:
    """What a project has made so far, of one sample or all."""
    for name in steps.samples:
        if sample in (None, name):
            yield from _converted(steps, name)
            for wanted in predictions(steps, name):
                yield Made(wanted.step.name, wanted.step.output, partial(predicting, wanted))


def predictions(steps: Steps, sample: str) -> Iterator[Prediction]:
    """The finished predictions of a sample: pseudo-labels, the U-Net's, the baselines'."""
    found: list[Prediction] = []
    if sample in steps.to_learn_from and steps.trains:
        found.append(pseudolabels(steps, sample))
    if steps.predicts and sample in steps.to_cover:
        found.append(segmentation(steps, sample))
    if steps.trains and sample in steps.with_role("test"):
        found += [baseline(steps, sample, method) for method in BASELINES]
    return (wanted for wanted in found if _is_done(wanted.step))


def _converted(steps: Steps, sample: str) -> Iterator[Made]:
    convert, view = steps.convert(sample), steps.samples[sample]
    if not _is_done(convert):
        return
    record = read_ledger(convert.ledger)  # not the volume, which may be what is damaged
    filled = record is not None and "filled_slices" in (record.finished or {})
    original = Original(view.source, view.channels, filled)
    yield Made(convert.name, convert.output, partial(copying, convert.output, original))
    if tissue_path(convert.output).exists():
        way_out = "are made with their image only: build it anew with `--redo convert`"
        yield Made(f"tissue {sample}", tissue_path(convert.output), None, way_out)
    for role in view.annotations:
        step = steps.annotate(sample, role)
        if _is_done(step):
            yield Made(step.name, step.output, partial(annotating, view.annotations[role], step.output))


def _is_done(step: Step) -> bool:
    return state_of(step).kind == "done"
