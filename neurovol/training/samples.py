"""What training reads: samples, where in them may be learned from, and where experts annotated.

Nothing here loads a volume: annotations are counted once, piece by piece, in cells; patches are then
found through the counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from neurovol.geometry import BlockGrid, Box, Zyx, reflected, zyx
from neurovol.networks.normalise import Normalisation

UNLABELLED, BACKGROUND, NEURON, IGNORE = 0, 1, 2, 3
LABELS = (BACKGROUND, NEURON)
PIECE: Zyx = (32, 512, 512)  # voxels counted at once: 8 MiB, whole shards or chunks of most stores


class ImageReader(Protocol):
    """Reads (c, z, y, x) integers of a box inside the sample."""

    def read(self, box: Box, channels: tuple[int, ...]) -> npt.NDArray[Any]: ...


class LabelReader(Protocol):
    """Reads (z, y, x) uint8 of a box inside the sample."""

    def read(self, box: Box) -> npt.NDArray[Any]: ...


@dataclass(frozen=True)
class TrainingSample:
    """A sample to learn from; boxes are in voxels of level 0, inside `shape`.

    `annotation` reads 0 unlabelled, 1 background, 2 neuron, 3 ignore; `pseudo` reads probabilities as
    p = value / 255. Excluded boxes (test annotations and the gap around them) win over all others.
    """

    name: str
    shape: Zyx
    channels: tuple[int, ...]
    image: ImageReader
    annotation: LabelReader
    normalisation: Normalisation
    boxes: tuple[Box, ...]  # the training boxes
    pseudo: LabelReader | None = None
    inferred: tuple[Box, ...] = ()  # where pseudo-labels exist
    excluded: tuple[Box, ...] = ()
    annotated: tuple[Box, ...] | None = None  # where annotations can be, to save reading; default the training boxes

    @property
    def whole(self) -> Box:
        return Box.of_shape(self.shape)

    def learnable(self, box: Box) -> npt.NDArray[np.bool_]:
        """Which voxels of a box lie in the sample, in a training box and in no excluded one."""
        return covered(box, (b.intersect(self.whole) for b in self.boxes)) & ~covered(box, self.excluded)

    def labels(self, box: Box) -> npt.NDArray[np.uint8]:
        """The annotation of a box inside the sample, unlabelled wherever it may not be learned from."""
        return np.where(self.learnable(box), self.annotation.read(box), UNLABELLED).astype(np.uint8)

    def normalised(self, box: Box) -> npt.NDArray[np.float32]:
        """The image as float32 (c, z, y, x), continued by reflection where the box leaves the sample."""
        raw = read_continued(lambda inner: self.image.read(inner, self.channels), box, self.shape)
        return self.normalisation.apply(raw)


def covered(box: Box, boxes: Iterable[Box]) -> npt.NDArray[np.bool_]:
    """Which voxels of `box` lie in any of `boxes`: bool, of the box's shape."""
    mask = np.zeros(box.shape, np.bool_)
    for other in boxes:
        shared = box.intersect(other)
        if shared.size:
            mask[shared.within(box)] = True
    return mask


def read_continued(read: Callable[[Box], npt.NDArray[Any]], box: Box, shape: Zyx) -> npt.NDArray[Any]:
    """Read a box that may leave the volume, which is then continued by reflection."""
    plan = reflected(box, shape)
    array = read(plan.inner)
    for axis, take in enumerate(plan.take, start=-3):
        if take is not None:
            array = array.take(take, axis=axis)
    return array


@dataclass(frozen=True)
class AnnotationIndex:
    """In which cells of which samples how many voxels are annotated: one row per cell that has any.

    `counts` is (rows, 2): voxels of background and of neuron.
    """

    grids: tuple[BlockGrid, ...]  # per sample, one block per cell
    sample: npt.NDArray[np.int64]
    cell: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]

    @cached_property
    def _running(self) -> npt.NDArray[np.int64]:
        return np.cumsum(self.counts, axis=0)

    @property
    def background(self) -> int:
        return int(self.counts[:, 0].sum())

    @property
    def neuron(self) -> int:
        return int(self.counts[:, 1].sum())

    def count(self, label: int) -> int:
        return self.neuron if label == NEURON else self.background

    def draw(self, label: int, rng: np.random.Generator) -> tuple[int, Box]:
        """A sample's number and a cell of it, likelier the more voxels of `label` the cell has."""
        running = self._running[:, LABELS.index(label)]
        row = int(np.searchsorted(running, rng.integers(running[-1]), side="right"))
        number = int(self.sample[row])
        return number, self.grids[number][int(self.cell[row])].write


def annotation_index(samples: Sequence[TrainingSample], cell: Zyx) -> AnnotationIndex:
    """Count the annotated voxels that may be learned from, reading about 8 MiB at a time."""
    grids = tuple(BlockGrid(s.shape, cell, cell) for s in samples)
    rows = [
        (number, index, background, neuron)
        for number, (sample, grid) in enumerate(zip(samples, grids, strict=True))
        for index, background, neuron in _counted(sample, grid)
    ]
    table = np.array(rows, np.int64).reshape(-1, 4)
    return AnnotationIndex(grids, table[:, 0], table[:, 1], table[:, 2:])


def _counted(sample: TrainingSample, grid: BlockGrid) -> Iterator[tuple[int, int, int]]:
    """Index, background and neuron voxels of each cell that has any."""
    cell = grid.block
    piece = zyx(max(1, p // c) * c for p, c in zip(PIECE, cell, strict=True))
    places = sample.boxes if sample.annotated is None else sample.annotated
    for block in BlockGrid(sample.shape, piece, cell).meeting(places):
        labels = sample.labels(block.write)
        background, neuron = (_sums(labels == label, cell) for label in LABELS)
        first = zyx(a // c for a, c in zip(block.write.start, cell, strict=True))
        for place in np.argwhere(background + neuron):
            z, y, x = zyx(place + first)
            index = (z * grid.counts[1] + y) * grid.counts[2] + x
            yield index, int(background[tuple(place)]), int(neuron[tuple(place)])


def _sums(mask: npt.NDArray[np.bool_], cell: Zyx) -> npt.NDArray[np.int64]:
    """True voxels per cell, cells counted from the array's first voxel."""
    sums: npt.NDArray[Any] = mask
    for axis in (2, 1, 0):
        sums = np.add.reduceat(sums, range(0, mask.shape[axis], cell[axis]), axis=axis, dtype=np.int64)
    return sums
