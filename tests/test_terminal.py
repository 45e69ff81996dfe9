"""What a log file gets where output is no terminal."""

from pathlib import Path

import pytest

from neurovol.progress import Lines, Progress
from neurovol.project import State, Step
from neurovol.stages.order import Action
from neurovol.terminal import Bars

STEP = Step("segment", "brain1", {}, Path("l.jsonl"), Path("out"))


def blocks(done: int, **values: float) -> Progress:
    return Progress(STEP.name, done, 120, "blocks", done, 10.0 * done, **values)


def test_a_log_says_that_a_step_starts_and_how_it_ended(capsys: pytest.CaptureFixture[str]) -> None:
    with Bars() as bars:
        bars.begin(Action(STEP, list, None), State("missing"))
        for done in range(121):
            bars.report(blocks(done, voxels=done * 10**8))
        bars.report(blocks(120, voxels=12 * 10**9))
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "segment brain1: starting",
        "segment brain1: 120 of 120 blocks done in 20 min 0 s, 10 million voxels/s",
    ]


def test_a_log_says_what_was_done_before(capsys: pytest.CaptureFixture[str]) -> None:
    with Bars() as bars:
        bars.begin(Action(STEP, list, None), State("done"))
    assert capsys.readouterr().err == "segment brain1: was done before\n"


def test_each_step_has_a_line_a_minute_of_its_own() -> None:
    lines = Lines(every_s=0.0)
    assert all(lines.due(blocks(done)) for done in (1, 2, 3))
    lines = Lines()
    assert not any(lines.due(blocks(done)) for done in (1, 2, 3))


def test_a_step_that_is_begun_again_ends_again() -> None:
    """As one whose workers were lost."""
    lines = Lines()
    assert [lines.due(blocks(done)) for done in (119, 120, 120, 0, 120)] == [False, True, False, False, True]
