"""What a step would do, as a value to print before anything is spent."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from neurovol.progress import duration
from neurovol.stages.disk import NOTHING, DiskNeed

# Voxels per second on two cores of an EPYC with avx512_bf16, halos and reading included, as the README's demo
# and table show them; they only serve the estimate of hours, which says at what pace it was made.
PACE = {
    "copy": 300e6,
    "decode": 120e6,
    "phantom": 11e6,
    "annotate": 25e6,
    "cnn2d": 0.2e6,
    "unet3d fp32": 0.35e6,
    "unet3d bf16": 0.6e6,
}


@dataclass(frozen=True)
class Plan:
    """Blocks, windows, bytes, memory and hours of a step; `notes` are further lines for people."""

    step: str
    state: str
    blocks: int = 0
    blocks_done: int = 0
    windows: int = 0
    read_bytes: int = 0
    write_bytes: int = 0
    memory_bytes: int = 0
    memory_of: str = "per worker"
    memory_terms: str = ""  # what it is needed for, where memory_bytes has the libraries in it
    voxels: int = 0
    pace: str = ""  # which figure of PACE the hours are estimated from
    disk: DiskNeed = NOTHING  # what it may still take of the store's disk
    scratch: DiskNeed = NOTHING  # and, for a while, of the one that scratch_folder is on
    scratch_folder: Path | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def seconds(self) -> float | None:
        return self.voxels / PACE[self.pace] if self.pace else None

    @property
    def lines(self) -> tuple[str, ...]:
        """The plan for people, a line per fact."""
        facts = [f"{self.step}: {self.state}"]
        if self.blocks:
            facts.append(f"  blocks    {self.blocks:,}, of which {self.blocks_done:,} are done")
        if self.windows:
            facts.append(f"  windows   {self.windows:,}")
        if self.read_bytes or self.write_bytes:
            facts.append(f"  data      reads {_bytes(self.read_bytes)}, writes at most {_bytes(self.write_bytes)}")
        if self.disk:
            facts.append(
                f"  disk      at most {_bytes(self.disk.bytes)} and {self.disk.inodes:,} files and folders more"
            )
        if self.memory_terms:
            facts.append(f"  memory    {_bytes(self.memory_bytes)} a worker: {self.memory_terms}")
        elif self.memory_bytes:
            facts.append(f"  memory    about {_bytes(self.memory_bytes)} {self.memory_of} beside the libraries' own")
        if self.seconds is not None and self.state != "done":
            facts.append(f"  time      about {duration(self.seconds)} at {PACE[self.pace] / 1e6:g} million voxels/s")
        return (*facts, *(f"  {note}" for note in self.notes))


def _bytes(count: float) -> str:
    """A number of bytes as people say it.

    >>> _bytes(2_500_000_000)
    '2.5 GB'
    """
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def text_of(plans: Iterable[Plan]) -> str:
    return "\n".join(line for plan in plans for line in plan.lines)
