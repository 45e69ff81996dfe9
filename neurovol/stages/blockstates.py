"""What became of each block of a step, as an image over the sample that is kept up to date while the step runs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neurovol.blockwise.rows import Outcome, Rows
from neurovol.geometry import BlockGrid
from neurovol.project import Step
from neurovol.volume.blockimage import BlockImage
from neurovol.volume.omezarr import open_volume

log = logging.getLogger(__name__)

EVERY_S = 15.0
PATIENCE_S = 10.0  # of a step that ends, for a disk that does not take the image
SLOW = 3.0  # times the median
MEANINGS = (
    (Outcome.NOT_YET, "not yet", "00000000"),
    (Outcome.DONE, "done", "2CA02C80"),
    (Outcome.SKIPPED, "skipped: holds no tissue", "7F7F7F80"),
    (Outcome.SLOW, f"done, slow: more than {SLOW:g} times the median", "FFBF00C0"),
    (Outcome.SET_ASIDE, "set aside: failed", "D62728FF"),
)


def states_of(rows: Rows, count: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Seconds of each of the first `count` blocks of a step, 0 where it is not done, and its Outcome.

    Slow is what took more than three times the median of what is done so far and was not skipped.
    """
    states, seconds = rows.outcomes(count)
    computed = states == Outcome.DONE
    if computed.any():
        states[computed & (seconds > SLOW * np.median(seconds[computed]))] = Outcome.SLOW
    return seconds, states


@contextmanager
def watched(step: Step, rows: Rows, every_s: float = EVERY_S) -> Iterator[Callable[[], None]]:
    """Keeps the image at step.progress while a step's blocks are run, from what is done before to what is done after.

    What it gives is to be called now and then, by the thread that adds rows; at most every `every_s` it has
    the image rewritten, by another thread. The image tells of the blocks of level 0, one shard each, which are the
    first by number. It is for people alone: where it cannot be written the step goes on, and a warning says so once.
    """
    drawing = Drawing(step.progress, step.output, step.name, rows, every_s)
    drawing.begin()
    try:
        yield drawing.look
    finally:
        drawing.end()


@dataclass
class Drawing:
    """The image of a step's blocks in the making."""

    path: Path | None  # None: there is to be none
    output: Path  # the volume that the blocks write
    name: str
    rows: Rows
    every_s: float
    image: BlockImage | None = None
    drawn_at: float = 0.0
    thread: threading.Thread | None = None
    warned: bool = False

    def begin(self) -> None:
        self._start()
        self._wait()

    def look(self) -> None:
        waited = time.monotonic() - self.drawn_at >= self.every_s
        if waited and (self.thread is None or not self.thread.is_alive()):
            self._start()

    def end(self) -> None:
        if self._wait():
            self._start()
            self._wait()

    def _wait(self) -> bool:
        """Whether nothing is being written any more; a disk that hangs is not waited for."""
        if self.thread is not None:
            self.thread.join(PATIENCE_S)
        return self.thread is None or not self.thread.is_alive()

    def _start(self) -> None:
        if self.path is None:
            return
        self.drawn_at = time.monotonic()
        try:
            image = self.image or self._made(self.path)
            told = states_of(self.rows, len(image.grid))
            self.thread = threading.Thread(target=self._draw, args=(image, *told), daemon=True)
            self.thread.start()
        except Exception as error:
            self._warn(error)

    def _made(self, path: Path) -> BlockImage:
        info = open_volume(self.output, allow_incomplete=True)
        grid = BlockGrid(info.shape, info.shard(0), info.shard(0))
        return BlockImage(path, f"{self.name}: seconds", grid, info.voxel_size_um, MEANINGS, "seconds a block took")

    def _draw(self, image: BlockImage, seconds: NDArray[np.float32], states: NDArray[np.uint8]) -> None:
        try:
            if self.image is None:  # whatever lies there is an earlier run's, of other blocks perhaps
                image.create(seconds, states)
                self.image = image
            else:
                image.update(seconds, states)
        except Exception as error:
            self._warn(error)

    def _warn(self, error: Exception) -> None:
        if not self.warned:
            self.warned = True
            log.warning("%s: the image of its blocks cannot be written, the step goes on without: %s", self.path, error)
