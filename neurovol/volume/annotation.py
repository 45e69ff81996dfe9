"""What experts drew, as the store keeps it: 0 unlabelled, 1 background, 2 neuron, 3 ignore."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurovol.errors import Failure, UserError
from neurovol.geometry import Box, Zyx, zyx
from neurovol.settings import Annotation, AnnotationValues, box_of
from neurovol.volume.labelimage import open_labels
from neurovol.volume.offset import RawCrop, check_crop
from neurovol.volume.roi import RoiSet, is_roi_set, open_roi_set
from neurovol.volume.source import Source
from neurovol.volume.tiff import open_tiff

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

    file: Any
    box: Box

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (self.file.shape[0], *self.box.shape)

    def read(self, box: Box, channels: tuple[int, ...]) -> NDArray[Any]:
        """(c, z, y, x); the box is counted from the cut's own corner."""
        read: NDArray[Any] = self.file.read(box.shifted(self.box.start), channels)
        return read

    def identity(self) -> dict[str, Any]:
        identity: dict[str, Any] = self.file.identity()
        return identity


@dataclass(frozen=True)
class AnnotationPiece:
    """One annotation: an image of labels, where it lies in the sample, and which of its planes were drawn."""

    box: Box
    source: Any  # a reader of (1, z, y, x) with the shape of the box
    planes: tuple[int, ...] | None  # counted within the box; None: all
    values: AnnotationValues
    name: str = "annotation"  # for messages
    crop: RawCrop | None = None

    @property
    def has_instances(self) -> bool:
        """Whether the source tells one neuron from the next."""
        return isinstance(self.source, RoiSet) or self.values.neuron == "instances"

    def read(self, box: Box) -> NDArray[np.uint8]:
        """(z, y, x) of any box of the sample; unlabelled outside this piece."""
        out = np.zeros(box.shape, np.uint8)
        for run, local in self._runs(box):
            out[run.within(box)] = self._labels(self.source.read(local, (0,))[0])
        return out

    def read_instances(self, box: Box) -> NDArray[np.uint32]:
        """(z, y, x): the number of the neuron, as the source has it; 0 where there is none, or it has no numbers."""
        out = np.zeros(box.shape, np.uint32)
        for run, local in self._runs(box) if self.has_instances else ():
            out[run.within(box)] = self._numbers(local)
        return out

    def _runs(self, box: Box) -> Iterator[tuple[Box, Box]]:
        """What to read, all at once or the annotated planes one by one: counted in the sample, and in this piece."""
        part = self.box.intersect(box)
        drawn = [part]
        if self.planes is not None:
            layer = Box((0, *part.start[1:]), (1, *part.stop[1:]))
            drawn = [layer.shifted((self.box.start[0] + p, 0, 0)).intersect(part) for p in self.planes]
        return ((run, run.shifted(zyx(-a for a in self.box.start))) for run in drawn if run.size)

    def _labels(self, drawn: NDArray[Any]) -> NDArray[np.uint8]:
        labels = np.zeros(drawn.shape, np.uint8)
        labels[drawn > 0 if self.values.neuron == "instances" else drawn == self.values.neuron] = NEURON
        labels[drawn == self.values.background] = BACKGROUND
        if self.values.ignore is not None:
            labels[drawn == self.values.ignore] = IGNORE
        return labels

    def _numbers(self, local: Box) -> NDArray[np.uint32]:
        drawn = self.source.read(local, (0,))[0]
        numbers = self.source.read_instances(local) if isinstance(self.source, RoiSet) else drawn
        numbers = np.where(self._labels(drawn) == NEURON, numbers, 0)
        if numbers.max(initial=0) >= 2**32:
            raise Failure(
                f"{self.name}: the instance {numbers.max()} does not fit in 32 bits; "
                f"number them from 1 on, and save again"
            )
        return numbers.astype(np.uint32)

    def identity(self) -> dict[str, Any]:
        """What determines labels and instances; the crop only where there is one, which refuses or changes nothing."""
        return {
            "box": [list(pair) for pair in self.box.pairs],
            "planes": None if self.planes is None else list(self.planes),
            "values": self.values.model_dump(mode="json"),
            "source": self.source.identity(),
            **({} if self.crop is None else {"crop": self.crop.identity()}),
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

    @property
    def has_instances(self) -> bool:
        """Whether any of the annotations tells one neuron from the next."""
        return any(piece.has_instances for piece in self.pieces)

    def read_instances(self, box: Box) -> NDArray[np.uint32]:
        """(z, y, x) of any box of the sample: numbers of neurons, 0 where `read` has none or its source no numbers.

        Numbers of different annotations differ: of n with instances the k-th (from 0) has k in the topmost bits, as
        many as n - 1 needs, and its own numbers below. So no file has to be read for its largest number, and one
        annotation alone keeps its numbers. Failure where a number does not fit below.
        """
        out = np.zeros(box.shape, np.uint32)
        numbered = [k for k, piece in enumerate(self.pieces) if piece.has_instances]
        bits = 32 - max(len(numbered) - 1, 0).bit_length()
        for k, piece in enumerate(self.pieces):
            if piece.box.intersect(box).size:
                numbers = piece.read_instances(box)
                if int(numbers.max()) >> bits:
                    raise Failure(
                        f"{piece.name}: the instance {numbers.max()} does not fit in the {bits} bits that "
                        f"{len(numbered)} annotations leave; number them from 1 on, and save again"
                    )
                if k in numbered:
                    numbers[numbers > 0] |= np.uint32(numbered.index(k) << bits)
                np.copyto(out, numbers, where=piece.read(box) != UNLABELLED)
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


def check_crops(reader: AnnotationReader, image: Any, channel: int) -> None:
    """Refuse annotations whose raw crop is not what the sample holds at their box (see offset.check_crop).

    `image` is read as read(box, channels), with the sample's shape; nothing is read where no crop is given.
    """
    for piece in reader.pieces:
        if piece.crop is not None:
            check_crop(piece.name, piece.box, piece.crop, image, channel)


def _piece(annotation: Annotation, sample_shape: Zyx, source: Source, root: Path) -> AnnotationPiece:
    name = f"annotation {annotation.source} of sample {annotation.sample}"
    box = box_of(annotation.box, sample_shape)
    if not Box.of_shape(sample_shape).contains(box):
        raise UserError(
            f"{name}: its box {_text(box)} (z, y, x) leaves the sample, which has the shape {sample_shape}; "
            f"ranges are half-open and count voxels from 0"
        )
    planes = _planes(name, annotation, box.shape[0])
    path = root / annotation.source
    if annotation.source == "phantom":
        drawn: Any = PhantomTruth(source, box)
    elif not path.exists():
        raise UserError(
            f"{path}: there is no such file or folder; give a TIFF, a folder with one per z-slice, an ImageJ ROI set "
            f"(.roi, .zip) or OME-Zarr labels"
        )
    elif is_roi_set(path):
        drawn = open_roi_set(path, box.shape)
        _check_roi_set(name, drawn, planes, annotation.values)
    else:
        drawn = _fitted(name, open_labels(path), sample_shape, box)
    crop = _crop(name, root / annotation.crop, sample_shape, box) if annotation.crop is not None else None
    return AnnotationPiece(box, drawn, planes, annotation.values, name, crop)


def _crop(name: str, path: Path, sample_shape: Zyx, box: Box) -> RawCrop:
    drawn_on = open_tiff(path)
    if drawn_on.shape[0] != 1:
        raise UserError(
            f"{name}: its raw crop {path} has {drawn_on.shape[0]} channels; save the one drawn on by itself"
        )
    return RawCrop(str(path), _fitted(f"{name}: its raw crop {path}", drawn_on, sample_shape, box), sample_shape)


def _fitted(name: str, drawn: Any, sample_shape: Zyx, box: Box) -> Any:
    """A reader of the box's shape; what was drawn over the whole sample is cut to the box."""
    if zyx(drawn.shape[1:]) == sample_shape != box.shape:
        drawn = Cut(drawn, box)
    _check_shape(name, drawn.shape, box)
    return drawn


def _check_roi_set(name: str, drawn: RoiSet, planes: tuple[int, ...] | None, values: AnnotationValues) -> None:
    if planes is None:
        raise UserError(
            f"{name}: a slice on which nothing was drawn is either background or was not looked at, and an ROI set "
            f"does not tell which; declare the annotated planes by `slices`, or all of them by `every = 1`"
        )
    if 1 not in (values.background, values.neuron, values.ignore) and values.neuron != "instances":
        raise UserError(
            f"{name}: an ROI set reads as 1 inside its outlines and 0 elsewhere, but none of its `values` is 1; "
            f'leave them out, or set neuron = 1 or neuron = "instances"'
        )
    for z, roi in drawn.slices.items():
        if z not in planes:
            raise UserError(
                f"{name}: the ROI {roi!r} lies on slice {z + 1} of ImageJ, plane {z} of its box, which is not declared "
                f"as annotated; add {z} to `slices` (they count from 0), or delete the ROI"
            )


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
