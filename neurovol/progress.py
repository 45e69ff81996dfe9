"""What a stage says while it works, to whoever draws it: a bar at a terminal, an artifact in Prefect."""

from __future__ import annotations

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
        return (self.total - self.done) * self.seconds / self.here


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
