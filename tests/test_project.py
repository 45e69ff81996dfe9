"""A step built anew takes the old one's place whole, whenever death comes."""

from pathlib import Path

import pytest

from neurovol import project
from neurovol.blockwise.ledger import Header, Ledger
from neurovol.project import Step, perform, state_of


class Death(BaseException):
    """Stands for kill -9: nothing that follows is done."""


def _step(folder: Path, value: int) -> Step:
    return Step("convert", "s", {"value": value}, folder / "ledgers/convert.jsonl", folder / "image")


def _make(step: Step) -> None:
    """The work of a step: one file, and its record; not to be done twice."""
    assert not step.output.exists()
    step.output.mkdir(parents=True)
    (step.output / "0").write_text(str(step.inputs["value"]))
    with Ledger(step.ledger, Header(step.name, step.inputs, 1)) as ledger:
        ledger.finish()


def _dying_at(monkeypatch: pytest.MonkeyPatch, moment: int) -> None:
    """From here on death comes before the so-manieth thing that is moved or removed."""
    left = iter(range(moment))

    def mortal(effect):
        def wrapped(*arguments):
            if next(left, None) is None:
                raise Death
            return effect(*arguments)

        return wrapped

    monkeypatch.setattr(Path, "rename", mortal(Path.rename))
    monkeypatch.setattr(project, "_remove", mortal(project._remove))


@pytest.mark.parametrize("redo", [True, False])
def test_a_step_that_was_begun_is_continued_where_it_lies(tmp_path: Path, redo: bool) -> None:
    step = _step(tmp_path, 1)
    with Ledger(step.ledger, Header(step.name, step.inputs, 2)) as ledger:
        ledger.append(0, "done")
    assert state_of(step).kind == "begun"
    taken_up = []
    perform(step, taken_up.append, redo=redo)
    assert taken_up == [step]


@pytest.mark.parametrize("redo", [True, False])
@pytest.mark.parametrize("moment", range(7))
def test_a_swap_that_is_cut_short_is_completed_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int, redo: bool
) -> None:
    old, new = _step(tmp_path, 1), _step(tmp_path, 2)
    perform(old, _make)
    with monkeypatch.context() as patched:
        _dying_at(patched, moment)
        if moment < 6:  # as many things are moved or removed
            with pytest.raises(Death):
                perform(new, _make, redo=True)
        else:
            perform(new, _make, redo=True)
    if moment == 0 and not redo:  # the old one is untouched yet, and stale
        assert state_of(old).kind == "done"
        return
    if moment < 6:
        perform(new, _make, redo=redo)
    assert state_of(new).kind == "done"
    assert (new.output / "0").read_text() == "2"
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()) == [
        "image/0",
        "ledgers/convert.jsonl",
    ]
    assert not list(tmp_path.glob("image.*"))
