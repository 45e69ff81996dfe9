"""What the report says in words and numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from math import isfinite
from typing import Any

from neurovol.report.data import ReportData, in_order, method_title

NA = "n/a"
SPOKEN = {  # methods within a sentence
    "cnn2d": "the 2D CNN",
    "unet3d_sparse": "the U-Net trained on annotated voxels only",
    "unet3d_pseudo": "the U-Net with pseudo-labels",
}
LEVEL = 0.01  # two Dice values closer than this are called level: the report ranks nothing on less
SCORES = {"dice": "Dice", "precision": "Precision", "recall": "Recall", "average_precision": "Average precision"}


def number(value: Any) -> float | None:
    """A finite float, or None for what is missing or undefined."""
    return float(value) if value is not None and isfinite(value) else None


def decimals(value: float | None, places: int = 3) -> str:
    return NA if value is None else f"{value:.{places}f}"


def count(value: float | None) -> str:
    """A whole number in groups of three, apart by narrow spaces.

    >>> count(1234567).split("\\u202f")
    ['1', '234', '567']
    """
    return NA if value is None else f"{round(value):,}".replace(",", "\u202f")


def large(value: float | None) -> str:
    """Three digits and a unit.

    >>> large(10_205_100), large(940)
    ('10.2 M', '940')
    """
    if value is None:
        return NA
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size * 0.9995:  # what rounds to 1000 of one unit is 1 of the next
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"


def percent(share: float | None) -> str:
    """Two digits, more where the share is tiny.

    >>> percent(0.4384), percent(0.00926), percent(0.0)
    ('43.8 %', '0.93 %', '0 %')
    """
    if share is None:
        return NA
    if share == 0:
        return "0 %"
    return f"{share * 100:.1f} %" if share >= 0.0995 else f"{share * 100:.2g} %"


def duration(seconds: float | None) -> str:
    """
    >>> duration(7.25), duration(200), duration(7500)
    ('7.2 s', '3 min 20 s', '2 h 05 min')
    """
    if seconds is None:
        return NA
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def when(iso: str) -> str:
    """
    >>> when("2025-12-03T14:05:00+00:00")
    '3 December 2025, 14:05 UTC'
    """
    time = datetime.fromisoformat(iso)
    return f"{time.day} {time:%B %Y, %H:%M} {time.tzname() or ''}".rstrip()


def micrometres(size: tuple[float, float, float]) -> str:
    return " × ".join(f"{s:g}" for s in size) + " µm"


@dataclass(frozen=True, slots=True)
class Score:
    """One method's scores; None where undefined."""

    method: str
    title: str
    values: Mapping[str, float | None]  # by key of SCORES
    confusion: Mapping[str, float | None]  # tn, fp, fn, tp

    def share(self, cell: str) -> float | None:
        """A cell of the confusion matrix as a share of its row: of what the annotation calls by one name."""
        row = ("tp", "fn") if cell in ("tp", "fn") else ("fp", "tn")
        value, total = self.confusion[cell], sum(self.confusion[c] or 0 for c in row)
        return value / total if value is not None and total else None


def scores(data: ReportData) -> list[Score]:
    """The methods of metrics.json in their fixed order."""
    methods = data.metrics.get("methods", {})
    rows = []
    for method in in_order(methods):
        given = methods[method]
        cells = given.get("confusion") or {}
        rows.append(
            Score(
                method,
                method_title(method),
                {key: number(given.get(key)) for key in SCORES},
                {cell: number(cells.get(cell)) for cell in ("tn", "fp", "fn", "tp")},
            )
        )
    return rows


def best(rows: list[Score], key: str) -> set[str]:
    """The methods that share the highest value, to three decimals; none where fewer than two are scored."""
    known = {row.method: round(value, 3) for row in rows if (value := row.values[key]) is not None}
    return {m for m, value in known.items() if value == max(known.values())} if len(known) > 1 else set()


def _listed(names: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def verdict(data: ReportData) -> str:
    """What the test says, in a sentence or two, claiming no more than the numbers do."""
    rows = scores(data)
    known = [(value, SPOKEN.get(row.method, row.title)) for row in rows if (value := row.values["dice"]) is not None]
    if not rows:
        return "Nothing was scored: the project has no test annotations, or they have not been evaluated yet."
    if not known:
        return "No method has a defined Dice: neither the predictions nor the test annotations hold a neuron."
    known.sort(key=lambda pair: -pair[0])
    (top, leader), others = known[0], known[1:]
    if not others:
        return f"On the test annotations {leader} reaches a Dice of {top:.3f}; no other method was scored."
    level = [name for value, name in others if top - value < LEVEL]
    behind = _listed([f"{value:.3f} for {name}" for value, name in others if top - value >= LEVEL])
    if not level:
        return f"On the test annotations {leader} agrees best: Dice {top:.3f}, against {behind}."
    ahead = f", ahead of {behind}" if behind else ""
    return f"On the test annotations {_listed([leader, *level])} are level: Dice {top:.3f}, within {LEVEL:g}{ahead}."


def lost_blocks(data: ReportData) -> int:
    return sum(len(stage.quarantined) for stage in data.stages)


def all_warnings(data: ReportData) -> list[str]:
    """The given warnings, after one on quarantined blocks, which leave holes in what the pictures show."""
    lost = lost_blocks(data)
    if not lost:
        return list(data.warnings)
    blocks = "1 block was" if lost == 1 else f"{lost} blocks were"
    hole = f"{blocks} quarantined after repeated failures: their voxels are missing. They are named under “What ran”."
    return [hole, *data.warnings]


def annotated_share(data: ReportData) -> float | None:
    """Annotated voxels over all voxels of the samples whose share is known."""
    known = [(s.annotated_share, s.voxels) for s in data.samples if s.annotated_share is not None]
    voxels = sum(n for _, n in known)
    return sum(share * n for share, n in known) / voxels if voxels else None
