"""What a stage leaves for people to see in Prefect: tables, figures and small pictures, in Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from neurovol.progress import Progress, duration
from neurovol.project import State, Step, state_of
from neurovol.report.curves import curve_png
from neurovol.report.data import METHODS, Curve
from neurovol.report.figures import markdown_picture
from neurovol.stages.glance import FOUND, glances
from neurovol.stages.learn import curve
from neurovol.stages.steps import Steps

MOST_SAMPLES = 3  # whose pictures a page shows: Prefect's database keeps every page


def summary(steps: Steps, title: str, done: Sequence[Step]) -> str:
    """Markdown of what `done` came to; pictures are data URIs, so that the page needs no server of ours."""
    return "\n\n".join([f"# {title}", _table(done), *_scores(steps, done), *_pictures(steps, done)])


def table(every: Sequence[Step]) -> list[dict[str, str]]:
    """A row for each step, as people read it."""
    return [_row(step, state_of(step)) for step in every]


def _row(step: Step, state: State) -> dict[str, str]:
    return {
        "step": step.name,
        "state": state.kind,
        "done": _done(step, state),
        "time": duration(state.seconds) if state.seconds else "",
        "million voxels/s": f"{state.voxels_per_s / 1e6:.3g}" if state.voxels_per_s else "",
        "set aside": f"{state.quarantined:,}" if state.quarantined else "",
    }


def _done(step: Step, state: State) -> str:
    """How many blocks; of a training the share, as its ledger has a row for many steps."""
    if state.total <= 1:
        return ""
    if _learns(step):
        return f"{state.done / state.total:.0%}"
    return f"{state.done:,} of {state.total:,} blocks"


def _learns(step: Step) -> bool:
    return step.output.parent.name == "models"


def _table(done: Sequence[Step]) -> str:
    """The same in Markdown."""
    rows = table(done)
    titles = list(rows[0]) if rows else []
    lines = [titles, ["---", "---", *["---:"] * (len(titles) - 2)], *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines if line)


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
    curves = [Curve(s.subject or "cnn2d", *curve(s.ledger)) for s in done if _learns(s)]
    curves = [c for c in curves if c.steps]
    if curves:
        yield markdown_picture(curve_png(curves), "loss over training steps")
    shown = dict(_pictured(steps, done))
    for name, found in list(shown.items())[:MOST_SAMPLES]:
        for glance in glances(steps, name, found):
            yield f"**{name}**: {glance.caption}"
            yield markdown_picture(glance.jpeg, f"{name}: {glance.caption}", "jpeg")
    if len(shown) > MOST_SAMPLES:
        yield f"and {len(shown) - MOST_SAMPLES} more samples, which the report shows"


def _pictured(steps: Steps, done: Sequence[Step]) -> Iterator[tuple[str, Step | None]]:
    """Samples to show, each with the step whose finding is outlined, if any; the last of a sample counts."""
    for step in done:
        if step.subject in steps.samples and not _learns(step) and state_of(step).kind == "done":
            if step.stage == "convert":
                yield step.subject, None
            elif step.stage in FOUND:
                yield step.subject, step


def report_link(steps: Steps) -> str:
    """Markdown that leads to the report, and tells its path: a browser opens files of its own machine alone."""
    report = steps.project.report.absolute()
    return f"[{report.name}]({report.as_uri()}) of {steps.project.settings.name}, which lies at\n\n`{report}`"


def learning(step: Step, said: Progress) -> str | None:
    """Markdown of a training that is under way: how far it is, and its loss so far; None before there is a curve."""
    beside = step.beside
    found = Curve(step.subject, *curve((beside if beside.ledger.exists() else step).ledger))
    if len(found.steps) < 2:
        return None
    rate = next(value for name, value in step.inputs.items() if name.endswith(".learning_rate"))
    facts = f"step {said.done:,} of {said.total:,}, loss {found.losses[-1]:.4f}, learning rate {rate:g} throughout"
    return f"**{step.name}**: {facts}\n\n{markdown_picture(curve_png([found]), f'{step.name}, loss over steps')}"
