"""What experts drew, as the store keeps it: 0 unlabelled, 1 background, 2 neuron, 3 ignore."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurovol.errors import UserError
from neurovol.geometry import Box, Zyx, zyx
from neurovol.settings import Annotation, AnnotationValues, box_of
from neurovol.volume.source import Source
from neurovol.volume.tiff import TiffSource, open_tiff

UNLABELLED, BACKGROUND, NEURON, IGNORE = 0, 1, 2, 3


@dataclass(frozen=True)
class PhantomTruth:
    """The truth of a phantom within a box, read like an annotation file of the box's shape."""

    phantom: Any
    box: Box

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (1, *self.box.shape)

    def read(self, box: Box, channels: tuple[int, ...]) -> NDArray[np.uint8]:
        """(1, z, y, x), 1 in neurons; the box is counted from this truth's own corner."""
        truth: NDArray[np.uint8] = self.phantom.truth(box.shifted(self.box.start))
        return truth[None]

    def identity(self) -> dict[str, Any]:
        return {"kind": "phantom's truth", "phantom": self.phantom.identity()}


@dataclass(frozen=True)
class Cut:
    """A box of an annotation file that covers its whole sample, read like a file of the box's shape."""

    file: TiffSource
    box: Box

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (self.file.shape[0], *self.box.shape)

    def read(self, box: Box, channels: tuple[int, ...]) -> NDArray[Any]:
        """(c, z, y, x); the box is counted from the cut's own corner."""
        return self.file.read(box.shifted(self.box.start), channels)

    def identity(self) -> dict[str, Any]:
        return self.file.identity()


@dataclass(frozen=True)
class AnnotationPiece:
    """One annotation: an image of labels, where it lies in the sample, and which of its planes were drawn."""

    box: Box
    source: Any  # a reader of (1, z, y, x) with the shape of the box
    planes: tuple[int, ...] | None  # counted within the box; None: all
    values: AnnotationValues

    def read(self, box: Box) -> NDArray[np.uint8]:
        """(z, y, x) of any box of the sample; unlabelled outside this piece."""
        out = np.zeros(box.shape, np.uint8)
        part = self.box.intersect(box)
        for run in self._runs(part):
            local = run.shifted(zyx(-a for a in self.box.start))
            out[run.within(box)] = self._labels(self.source.read(local, (0,))[0])
        return out

    def _runs(self, part: Box) -> list[Box]:
        """The boxes to read: the part as a whole, or its annotated planes one by one."""
        if part.size == 0:
            return []
        if self.planes is None:
            return [part]
        layer = Box((0, *part.start[1:]), (1, *part.stop[1:]))
        drawn = (self.box.start[0] + p for p in self.planes)
        return [layer.shifted((z, 0, 0)) for z in drawn if part.start[0] <= z < part.stop[0]]

    def _labels(self, drawn: NDArray[Any]) -> NDArray[np.uint8]:
        labels = np.zeros(drawn.shape, np.uint8)
        labels[drawn == self.values.background] = BACKGROUND
        labels[drawn == self.values.neuron] = NEURON
        if self.values.ignore is not None:
            labels[drawn == self.values.ignore] = IGNORE
        return labels

    def identity(self) -> dict[str, Any]:
        return {
            "box": [list(pair) for pair in self.box.pairs],
            "planes": None if self.planes is None else list(self.planes),
            "values": self.values.model_dump(mode="json"),
            "source": self.source.identity(),
        }


@dataclass(frozen=True)
class AnnotationReader:
    """All annotations of one role of a sample as one image; where two label a voxel, the later one counts."""

    pieces: tuple[AnnotationPiece, ...]

    def read(self, box: Box) -> NDArray[np.uint8]:
        """(z, y, x) of any box of the sample: 0 unlabelled, 1 background, 2 neuron, 3 ignore."""
        out = np.zeros(box.shape, np.uint8)
        for piece in self.pieces:
            if piece.box.intersect(box).size:
                labels = piece.read(box)
                np.copyto(out, labels, where=labels != UNLABELLED)
        return out

    def identity(self) -> dict[str, Any]:
        """What determines the content, JSON-able, in the order that decides conflicts."""
        return {"kind": "annotations", "pieces": [piece.identity() for piece in self.pieces]}


def annotation_reader(
    annotations: Sequence[Annotation], sample_shape: Zyx, source: Source, root: Path
) -> AnnotationReader:
    """The image that these annotations of one sample make; each is checked at the door.

    `source` is the sample's own, whose truth stands in for "phantom"; paths are relative to `root`.
    """
    return AnnotationReader(tuple(_piece(a, sample_shape, source, root) for a in annotations))


def _piece(annotation: Annotation, sample_shape: Zyx, source: Source, root: Path) -> AnnotationPiece:
    name = f"annotation {annotation.source} of sample {annotation.sample}"
    box = box_of(annotation.box, sample_shape)
    if not Box.of_shape(sample_shape).contains(box):
        raise UserError(
            f"{name}: its box {_text(box)} (z, y, x) leaves the sample, which has the shape {sample_shape}; "
            f"ranges are half-open and count voxels from 0"
        )
    if annotation.source == "phantom":
        drawn: Any = PhantomTruth(source, box)
    else:
        drawn = open_tiff(root / annotation.source, masks=True)
        if zyx(drawn.shape[1:]) == sample_shape != box.shape:  # drawn over the whole sample: the box is cut from it
            drawn = Cut(drawn, box)
        _check_shape(name, drawn.shape, box)
    return AnnotationPiece(box, drawn, _planes(name, annotation, box.shape[0]), annotation.values)


def _check_shape(name: str, shape: tuple[int, int, int, int], box: Box) -> None:
    if shape[0] != 1:
        raise UserError(f"{name}: it has {shape[0]} channels; an annotation is one image of labels, with one channel")
    if shape[1:] != box.shape:
        raise UserError(
            f"{name}: the file has the shape {shape[1:]}, but its box {_text(box)} has the shape {box.shape} "
            f"(z, y, x); give the `box` where the annotation lies in its sample"
        )


def _planes(name: str, annotation: Annotation, depth: int) -> tuple[int, ...] | None:
    if annotation.every is not None:
        return tuple(range(0, depth, annotation.every))
    if annotation.slices is None:
        return None
    outside = [z for z in annotation.slices if z >= depth]
    if outside:
        raise UserError(
            f"{name}: slices {outside} lie outside its box, which has {depth} planes; "
            f"slices count from 0 within the box, so the last is {depth - 1}"
        )
    return tuple(sorted(set(annotation.slices)))


def _text(box: Box) -> str:
    return str([list(pair) for pair in box.pairs])
