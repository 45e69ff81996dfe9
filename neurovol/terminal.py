"""What a terminal shows: a bar per step, and the table of a project's steps."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn
from rich.table import Table

from neurovol import progress
from neurovol.progress import Lines, duration, facts, sentence

if TYPE_CHECKING:
    from neurovol.project import State
    from neurovol.stages.order import Action

COLOURS = {"done": "green", "begun": "yellow", "stale": "red", "missing": "dim"}


class Bars:
    """Progress bars, one per step; steps that are done already get a line."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._lines = None if console.is_terminal else Lines()  # of a log file
        self._bars = Progress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            TextColumn("{task.fields[facts]}", style="dim"),
            console=console,
            disable=self._lines is not None,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Bars:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._bars.stop()

    def begin(self, action: Action, state: State) -> None:
        """Show that a step is about to start, or was done before."""
        name, done = action.step.name, state.kind == "done"
        if self._lines is not None:
            _log(f"{name}: {'was done before' if done else 'starting'}")
        elif done:
            self._task(name, 1, 1, "done before")
        else:
            self._task(name, 0, None, "")

    def report(self, said: progress.Progress) -> None:
        """Show how far a step is."""
        if self._lines is None:
            self._task(said.step, said.done, said.total, facts(said))
        elif self._lines.due(said):
            _log(sentence(said))

    def _task(self, name: str, done: int, total: int | None, text: str) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=total, facts=text)
        self._bars.update(self._tasks[name], completed=done, total=total, facts=text)


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def print_status(actions: Iterable[Action]) -> None:
    """A table of steps: state, blocks, seconds, pace; of a stale one what changed, of a begun one what is left."""
    from neurovol.project import state_of

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("step", "state", "done", "time", "voxels/s", ""):
        table.add_column(title, overflow="fold")
    for action in actions:
        state = state_of(action.step)
        notes = list(state.reasons)
        if state.quarantined:
            notes.append(f"{state.quarantined} quarantined, see {action.step.ledger}")
        if state.left_s is not None:
            notes.append(f"about {duration(state.left_s)} of one worker left")
        if state.kind == "begun" and action.step.progress is not None and action.step.progress.exists():
            notes.append(f"blocks so far over the image: {action.step.progress}")
        table.add_row(
            action.step.name,
            f"[{COLOURS[state.kind]}]{state.kind}",
            f"{state.done:,} of {state.total:,}" if state.total > 1 else "",
            duration(state.seconds) if state.seconds else "",
            f"{state.voxels_per_s / 1e6:.3g} million" if state.voxels_per_s else "",
            "; ".join(notes),
        )
    Console().print(table)
