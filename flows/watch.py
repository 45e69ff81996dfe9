"""What a flow shows while its steps run: how far each is, its loss where it learns, and lines that tell of it."""

from __future__ import annotations

import time

from prefect import get_run_logger

from flows.artifacts import Artifacts
from neurovol.progress import Lines, Progress, facts, sentence
from neurovol.project import State, Step
from neurovol.stages.order import Action
from neurovol.stages.summary import learning

PROGRESS_SECONDS = 5.0
CURVE_SECONDS = 30.0  # a picture of a curve takes a third of a second, in the process that learns


class Often:
    """Says for each of some things whether it is time again."""

    def __init__(self, every_s: float) -> None:
        self.every_s = every_s
        self._at: dict[str, float] = {}

    def due(self, name: str) -> bool:
        """Whether that long has passed since this last said so of it; at first it has not."""
        now = time.monotonic()
        if now - self._at.setdefault(name, now) < self.every_s:
            return False
        self._at[name] = now
        return True


class Watch:
    """Keeps an artifact current for each step, at a bounded rate, and logs as steps begin, go on and end."""

    def __init__(self, artifacts: Artifacts) -> None:
        self.logger = get_run_logger()
        self.artifacts, self.lines = artifacts, Lines()
        self.progress, self.curve = Often(PROGRESS_SECONDS), Often(CURVE_SECONDS)
        self.steps: dict[str, Step] = {}
        self.shown: set[str] = set()

    def begin(self, action: Action, state: State) -> None:
        name = action.step.name
        self.steps[name] = action.step
        self.logger.info("%s: was done before" if state.kind == "done" else "%s: starting", name)

    def report(self, said: Progress) -> None:
        """Show how far a step is; the first and the last word of a step are always shown."""
        if said.ended or said.step not in self.shown or self.progress.due(said.step):
            self.shown.add(said.step)
            percent = 100 * said.done / max(1, said.total)
            self.artifacts.show("progress", said.step, percent, _all(said))
        if said.unit == "steps" and (said.ended or self.curve.due(said.step)):
            self._show_curve(self.steps[said.step], said)
        if self.lines.due(said):
            self.logger.info(sentence(said))

    def _show_curve(self, step: Step, said: Progress) -> None:
        page = learning(step, said)
        if page is not None:
            self.artifacts.show("markdown", f"curve {step.name}", page, f"{step.name}: loss so far")


def _all(said: Progress) -> str:
    """The facts of a step, and of its workers where it has any."""
    if not said.workers or said.ended:
        return facts(said)
    return f"{facts(said)} · {said.workers:,} worker{'s' if said.workers > 1 else ''}"
