"""What a stage leaves for people to see in Prefect: a table of its steps, its figures and its picture, in Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from neurovol.progress import duration
from neurovol.project import Step, state_of
from neurovol.report.curves import curve_png
from neurovol.report.data import METHODS, Curve
from neurovol.report.figures import markdown_picture
from neurovol.stages.learn import curve
from neurovol.stages.report import sample_picture
from neurovol.stages.steps import Steps

# Prefect refuses events beyond 1.5 MB, and its database keeps every artifact
MOST_PICTURES = 4
PICTURE_PIXELS = 480


def summary(steps: Steps, title: str, done: Sequence[Step]) -> str:
    """Markdown of what `done` came to; pictures are data URIs, so that the page needs no server of ours."""
    return "\n\n".join([f"# {title}", _table(done), *_scores(steps, done), *_pictures(steps, done)])


def _table(done: Sequence[Step]) -> str:
    rows = ["| step | state | blocks | time |", "| --- | --- | ---: | ---: |"]
    for step in done:
        state = state_of(step)
        blocks = f"{state.done:,} of {state.total:,}" if state.total > 1 else ""
        rows.append(f"| {step.name} | {state.kind} | {blocks} | {duration(state.seconds)} |")
    return "\n".join(rows)


def _scores(steps: Steps, done: Sequence[Step]) -> Iterator[str]:
    if not any(step.name == "evaluate" for step in done) or not steps.project.metrics.exists():
        return
    metrics = json.loads(steps.project.metrics.read_text(encoding="utf-8"))
    rows = ["| method | Dice | precision | recall |", "| --- | ---: | ---: | ---: |"]
    for method, values in metrics["methods"].items():
        cells = " | ".join(_decimal(values[key]) for key in ("dice", "precision", "recall"))
        rows.append(f"| {METHODS[method]} | {cells} |")
    yield "\n".join(rows)
    if metrics["reference"]:
        yield f"*{metrics['reference']}*"


def _decimal(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"


def _pictures(steps: Steps, done: Sequence[Step]) -> Iterator[str]:
    curves = [Curve(s.subject or "cnn2d", *curve(s.ledger)) for s in done if s.output.parent.name == "models"]
    curves = [c for c in curves if c.steps]
    if curves:
        yield markdown_picture(curve_png(curves), "loss over training steps")
    shown = [s.subject for s in done if s.stage in ("convert", "segment") and state_of(s).kind == "done"]
    for name in list(dict.fromkeys(shown))[:MOST_PICTURES]:
        yield f"**{name}**, maximum along z"
        yield markdown_picture(sample_picture(steps, name, PICTURE_PIXELS), f"{name}, maximum along z")
    if any(step.stage == "report" for step in done):
        yield f"Report: `{steps.project.report}`"
