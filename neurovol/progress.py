"""What a stage says while it works, to whoever draws it: a bar at a terminal, an artifact in Prefect."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a step is: `done` of `total` units, `here` of them since this run began."""

    step: str
    done: int
    total: int
    unit: str  # "blocks" or "steps"
    here: int = 0
    seconds: float = 0.0  # since this run of the step began
    voxels: int = 0  # since this run of the step began
    note: str = ""
    workers: int | None = None  # at work now; None where the step is done without
    retried: int = 0  # times that a block was tried again, since this run began
    set_aside: int = 0  # blocks that failed for good, since this run began

    @property
    def ended(self) -> bool:
        """Whether nothing of the step is left that this run will try.

        >>> Progress("segment", done=9, total=10, unit="blocks", set_aside=1).ended
        True
        """
        return self.done + self.set_aside >= self.total

    @property
    def voxels_per_s(self) -> float:
        return self.voxels / self.seconds if self.seconds else 0.0

    @property
    def remaining_s(self) -> float | None:
        """Seconds left at the pace so far; None before the first unit is done.

        >>> Progress("segment", done=6, total=10, unit="blocks", here=2, seconds=10.0).remaining_s
        20.0
        """
        if not self.here or not self.seconds:
            return None
        return (self.total - self.done - self.set_aside) * self.seconds / self.here


Report = Callable[[Progress], None]


def silent(_: Progress) -> None:
    """For callers that do not watch."""


def duration(seconds: float) -> str:
    """A length of time as people say it.

    >>> duration(4.2), duration(95), duration(7300)
    ('4.2 s', '1 min 35 s', '2 h 1 min')
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def facts(said: Progress) -> str:
    """Counts, pace and time left of a step in a few words; what went wrong only where something did.

    >>> facts(Progress("segment", 6, 10, "blocks", 2, 10.0, 5_000_000))
    '6 of 10 blocks · 0.5 million voxels/s · 20 s left'
    >>> facts(Progress("segment", 6, 10, "blocks", 2, 10.0, retried=3, set_aside=1))
    '6 of 10 blocks · 15 s left · 3 tried again · 1 set aside'
    """
    parts = [f"{said.done:,} of {said.total:,} {said.unit}"]
    if said.voxels:
        parts.append(pace(said.voxels_per_s))
    if said.note:
        parts.append(said.note)
    if said.ended:
        parts.append(duration(said.seconds))
    elif said.remaining_s is not None:
        parts.append(f"{duration(said.remaining_s)} left")
    return " · ".join([*parts, *troubles(said)])


def sentence(said: Progress) -> str:
    """The same for a log, in words that need no explaining.

    >>> sentence(Progress("segment brain1", 40, 120, "blocks", 10, 90.0, 2_790_000_000))
    'segment brain1: 40 of 120 blocks, 31 million voxels/s, about 12 min left'
    >>> sentence(Progress("segment brain1", 119, 120, "blocks", 119, 190.0, retried=2, set_aside=1))
    'segment brain1: 119 of 120 blocks done in 3 min 10 s, 2 tried again, 1 set aside'
    """
    parts = [f"{said.step}: {said.done:,} of {said.total:,} {said.unit}"]
    if said.ended:
        parts[0] += f" done in {duration(said.seconds)}" if said.seconds else " done"
    if said.voxels:
        parts.append(pace(said.voxels_per_s))
    if said.note:
        parts.append(said.note)
    if not said.ended and said.remaining_s is not None:
        parts.append(f"{about(said.remaining_s)} left")
    return ", ".join([*parts, *troubles(said)])


def about(seconds: float) -> str:
    """A length of time that is only guessed.

    >>> about(20), about(95), about(7300)
    ('less than a minute', 'about 2 min', 'about 2 h 2 min')
    """
    minutes = round(seconds / 60)
    if not minutes:
        return "less than a minute"
    return f"about {minutes} min" if minutes < 60 else f"about {minutes // 60} h {minutes % 60} min"


class Lines:
    """Which reports become a line of a log: one a minute of each step while it runs, and its last."""

    def __init__(self, every_s: float = 60.0) -> None:
        self.every_s = every_s
        self._said_at: dict[str, float] = {}
        self._ended: set[str] = set()

    def due(self, said: Progress) -> bool:
        """Whether to write it down.

        >>> lines = Lines()
        >>> [lines.due(Progress("segment", done, 2, "blocks")) for done in (0, 1, 2, 2)]
        [False, False, True, False]
        """
        now = time.monotonic()
        if said.ended:
            new = said.step not in self._ended
            self._ended.add(said.step)
            return new
        self._ended.discard(said.step)
        if now - self._said_at.setdefault(said.step, now) < self.every_s:
            return False
        self._said_at[said.step] = now
        return True


def pace(voxels_per_s: float) -> str:
    """
    >>> pace(31_400_000)
    '31.4 million voxels/s'
    """
    return f"{voxels_per_s / 1e6:.3g} million voxels/s"


def troubles(said: Progress) -> list[str]:
    """What a person should know of, beside how far a step is.

    >>> troubles(Progress("segment", 6, 10, "blocks", workers=0, retried=2))
    ['no workers at the moment', '2 tried again']
    """
    found = ["no workers at the moment"] if said.workers == 0 and not said.ended else []
    found += [f"{said.retried:,} tried again"] if said.retried else []
    return found + ([f"{said.set_aside:,} set aside"] if said.set_aside else [])
