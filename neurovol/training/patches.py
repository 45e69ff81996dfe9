"""Patches for the 3D U-Net: image, target and weight map, each a pure function of seed, step and item."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from neurovol.errors import UserError
from neurovol.geometry import Box, Zyx, zyx
from neurovol.settings import TrainSettings
from neurovol.training.augment import mirrored, varied
from neurovol.training.samples import (
    BACKGROUND,
    NEURON,
    UNLABELLED,
    AnnotationIndex,
    TrainingSample,
    annotation_index,
    covered,
    read_continued,
)

log = logging.getLogger(__name__)

CELL: Zyx = (32, 64, 64)  # the annotation is searched cell by cell: a chunk of the default store
_STREAM = 3  # sets these random numbers apart from the pixels' of the same seed

Volume = npt.NDArray[np.float32]


class Batch(NamedTuple):
    """float32: image (B, C, Z, Y, X), target and weight (B, Z, Y, X)."""

    image: Tensor
    target: Tensor
    weight: Tensor


class PatchStream:
    """An endless stream of batches, addressed by step; holds counts of annotated voxels, no volumes.

    With `use_pseudo` False (the baseline) pseudo-labels weigh nothing and all patches lie around
    annotated voxels.
    """

    def __init__(self, samples: Sequence[TrainingSample], settings: TrainSettings, use_pseudo: bool = True) -> None:
        self.samples = tuple(samples)
        self.settings = settings
        self.alpha = settings.alpha if use_pseudo else 0.0
        self.index: AnnotationIndex = annotation_index(self.samples, CELL)
        self.labels = [label for label in (NEURON, BACKGROUND) if self.index.count(label)]
        self.inferred = _inferred(self.samples) if use_pseudo else []
        self.annotated_share = settings.annotated_share if self.inferred else 1.0
        if not self.labels and self.annotated_share > 0:
            names = ", ".join(s.name for s in samples)
            raise UserError(
                f"no annotated voxel in the training boxes of {names}, test boxes and their gap left out; "
                "declare [[annotations]] with role train there, or check their `values`, `box` and `slices`"
            )

    def batch(self, step: int) -> Batch:
        """The batch of a step, counted from 0."""
        patches = [self.patch(step, item) for item in range(self.settings.batch)]
        image, target, weight = (torch.from_numpy(np.stack(arrays)) for arrays in zip(*patches, strict=True))
        return Batch(image, target, weight)

    def patch(self, step: int, item: int) -> tuple[Volume, Volume, Volume]:
        """Image (c, z, y, x), target and weight (z, y, x)."""
        rng = np.random.default_rng((self.settings.seed, _STREAM, step, item))
        around_annotation = _is_turn(self.annotated_share, step * self.settings.batch + item)
        sample, box = self._annotated_box(rng) if around_annotation else self._inferred_box(rng)
        target, weight = self.target(sample, box)
        image = sample.normalised(box)
        if self.settings.augment:
            image, target, weight = mirrored((image, target, weight), rng)
            image = varied(image, rng)
        return image, target, weight

    def target(self, sample: TrainingSample, box: Box) -> tuple[Volume, Volume]:
        """Target probability and weight of a box's voxels: annotated 1, pseudo-labelled α, all others 0."""
        learnable = sample.learnable(box)
        annotation = read_continued(sample.annotation.read, box, sample.shape)
        annotated = learnable & ((annotation == BACKGROUND) | (annotation == NEURON))
        target = (annotation == NEURON).astype(np.float32)
        weight = annotated.astype(np.float32)
        pseudo = learnable & (annotation == UNLABELLED) & covered(box, sample.inferred)
        if self.alpha > 0 and sample.pseudo is not None and pseudo.any():
            target[pseudo] = self._pseudo_label(read_continued(sample.pseudo.read, box, sample.shape)[pseudo])
            weight[pseudo] = self.alpha
        return target, weight

    def _pseudo_label(self, p_255: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        p = np.divide(p_255, 255, dtype=np.float32)
        return (p >= 0.5).astype(np.float32) if self.settings.pseudo_labels == "hard" else p

    def _annotated_box(self, rng: np.random.Generator) -> tuple[TrainingSample, Box]:
        """A box about an annotated voxel, of a neuron every other time; the voxel lies anywhere in its middle half."""
        label = self.labels[int(rng.integers(len(self.labels)))]
        number, cell = self.index.draw(label, rng)
        sample = self.samples[number]
        found = np.argwhere(sample.labels(cell) == label)
        voxel = zyx(found[rng.integers(len(found))] + cell.start)
        within = next(b for b in sample.boxes if b.contains(Box.centred(voxel, (1, 1, 1))))
        jitter = zyx(int(rng.integers(-(n // 4), n // 4 + 1)) for n in self.settings.patch)
        box = Box.centred(voxel, self.settings.patch).shifted(jitter)
        return sample, self._placed(box, within, sample, rng)

    def _inferred_box(self, rng: np.random.Generator) -> tuple[TrainingSample, Box]:
        """A box anywhere in the pseudo-labelled training boxes, each as likely as it is large."""
        sizes = np.cumsum([box.size for _, box in self.inferred])
        sample, region = self.inferred[int(np.searchsorted(sizes, rng.integers(sizes[-1]), side="right"))]
        voxel = zyx(int(rng.integers(a, b)) for a, b in region.pairs)
        return sample, self._placed(Box.centred(voxel, self.settings.patch), region, sample, rng)

    def _placed(self, box: Box, region: Box, sample: TrainingSample, rng: np.random.Generator) -> Box:
        """The box moved into region and sample; along axes where the sample is thinner than a patch, loosely.

        Centred there, every patch would lie alike, and the network could tell annotated planes from others by
        their distance to the patch's border: on a sample 30 deep it then segmented in stripes.
        """
        loose = (
            int(rng.integers(-(n // 4), n // 4 + 1)) if n > extent else 0
            for n, extent in zip(box.shape, sample.shape, strict=True)
        )
        return box.moved_into(region).moved_into(sample.whole).shifted(zyx(loose))


def _inferred(samples: Sequence[TrainingSample]) -> list[tuple[TrainingSample, Box]]:
    """Where pseudo-labels can be learned from: the shared parts of training and inferred boxes."""
    shared = [(s, a.intersect(b)) for s in samples if s.pseudo is not None for a in s.boxes for b in s.inferred]
    return [(sample, box) for sample, box in shared if box.size]


def _is_turn(share: float, n: int) -> bool:
    """Whether the n-th of many is among an evenly spread share of them.

    >>> [_is_turn(0.5, n) for n in range(4)]
    [False, True, False, True]
    """
    return int((n + 1) * share) > int(n * share)
