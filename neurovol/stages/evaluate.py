"""Stage evaluate: the three methods' probabilities against the test annotations."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurovol.blockwise.ledger import Header, Ledger
from neurovol.errors import UserError
from neurovol.geometry import Box
from neurovol.progress import Progress, Report, silent
from neurovol.project import Step, perform, state_of, write_atomically
from neurovol.stages.cover import label_pieces
from neurovol.stages.plan import Plan
from neurovol.stages.steps import Steps
from neurovol.volume.omezarr import VolumeReader

BACKGROUND, NEURON = 1, 2  # of the store's annotation image; 0 unlabelled and 3 ignore are never scored

Counts = NDArray[np.int64]  # (2, 256): voxels per annotated class (background, neuron) and predicted value


def counted(annotation: NDArray[np.uint8], prediction: NDArray[np.uint8]) -> Counts:
    """How many annotated voxels of either class have each predicted value."""
    return np.stack(
        [np.bincount(prediction[annotation == label].ravel(), minlength=256) for label in (BACKGROUND, NEURON)]
    )


def confusion(counts: Counts, threshold: float) -> dict[str, int]:
    """Voxel confusion matrix; a voxel is neuron if value / 255 >= threshold.

    >>> counts = np.zeros((2, 256), int); counts[0, 127] = 5; counts[1, 128] = 3
    >>> confusion(counts, 0.5)
    {'tn': 5, 'fp': 0, 'fn': 0, 'tp': 3}
    """
    cut = int(np.ceil(threshold * 255))
    (tn, fp), (fn, tp) = ((int(row[:cut].sum()), int(row[cut:].sum())) for row in counts)
    return {"tn": tn, "fp": fp, "fn": fn, "tp": tp}


def average_precision(counts: Counts) -> float | None:
    """Sum over thresholds of precision times the gain in recall, from the 256 stored values; None without neurons."""
    false, true = (np.cumsum(row[::-1]) for row in counts)
    if not true[-1]:
        return None
    precision = true / np.maximum(true + false, 1)
    gain = np.diff(true, prepend=0) / true[-1]
    return float((precision * gain).sum())


def scores(counts: Counts, threshold: float) -> dict[str, Any]:
    """Dice, precision, recall, average precision and confusion matrix; None where undefined."""
    c = confusion(counts, threshold)
    return {
        "dice": _ratio(2 * c["tp"], 2 * c["tp"] + c["fp"] + c["fn"]),
        "precision": _ratio(c["tp"], c["tp"] + c["fp"]),
        "recall": _ratio(c["tp"], c["tp"] + c["fn"]),
        "average_precision": average_precision(counts),
        "confusion": c,
    }


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


@dataclass(frozen=True)
class Scored:
    """A sample's test boxes and what was predicted there."""

    boxes: tuple[Box, ...]
    annotation: VolumeReader
    predictions: Mapping[str, VolumeReader]

    def counts(self) -> dict[str, Counts]:
        total = {method: np.zeros((2, 256), np.int64) for method in self.predictions}
        for labels, box in label_pieces(self.annotation, self.boxes):
            for method, reader in self.predictions.items():
                total[method] += counted(labels, reader.read(box))
        return total


def scored(steps: Steps, sample: str) -> Scored:
    """The readers of a sample's test annotations and predictions."""
    return Scored(
        steps.samples[sample].boxes("test"),
        VolumeReader(str(steps.project.label(sample, "test"))),
        {method: VolumeReader(str(step.output)) for method, step in steps.predictions(sample).items()},
    )


def plan_evaluate(steps: Steps) -> list[Plan]:
    """What scoring would do."""
    step = steps.evaluate()
    return [Plan(step.name, state_of(step).kind, notes=(f"samples   {', '.join(steps.with_role('test'))}",))]


def evaluate(steps: Steps, *, redo: bool = False, report: Report = silent) -> None:
    """Score all methods on the test annotations, write metrics.json. UserError where a prediction is missing.

    It reads bounded pieces in the driver's own process.
    """
    for name in steps.with_role("test"):
        for step in steps.predictions(name).values():
            if state_of(step).kind != "done":
                raise UserError(
                    f'{step.output}: step "{step.name}" is not done, so there is nothing to score; '
                    f"run `neurovol {step.stage}` first, or `neurovol run` for everything"
                )
    perform(steps.evaluate(), lambda step: _score(steps, step, report), redo=redo)


def _score(steps: Steps, step: Step, report: Report) -> None:
    threshold = steps.project.settings.evaluate.threshold
    tested = steps.with_role("test")
    with Ledger(step.ledger, Header(step.name, step.inputs, len(tested))) as ledger:
        by_sample = {}
        for n, name in enumerate(tested):
            report(Progress(step.name, n, len(tested), "samples"))
            by_sample[name] = scored(steps, name).counts()
        total = {m: sum((c[m] for c in by_sample.values()), np.zeros((2, 256), np.int64)) for m in steps.methods}
        metrics = {
            "threshold": threshold,
            "methods": {m: scores(counts, threshold) for m, counts in total.items()},
            "samples": {n: {m: scores(c, threshold) for m, c in counts.items()} for n, counts in by_sample.items()},
            "models": {m: steps.checkpoint(m).name for m in steps.methods},
            "reference": steps.project.settings.evaluate.reference,
        }
        write_atomically(step.output, json.dumps(metrics, indent=1) + "\n")
        report(Progress(step.name, len(tested), len(tested), "samples"))
        ledger.finish(samples=len(tested))
