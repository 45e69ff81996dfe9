"""What of a submission people want to see while it runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Tally:
    """Kept current by a submission; one may be kept over several, as a step has one for each level."""

    workers: int | None = None  # now; None before they are counted
    retried: int = 0  # times that a block was tried again
