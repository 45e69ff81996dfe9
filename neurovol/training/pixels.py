"""Pixels for the 2D CNN: as many neurons as background, each with the patch around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import log
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from neurovol.errors import UserError
from neurovol.geometry import Box, Zyx
from neurovol.networks.cnn2d import PATCH
from neurovol.training.augment import BRIGHTNESS, GAMMA, with_gamma
from neurovol.training.samples import BACKGROUND, LABELS, NEURON, TrainingSample, annotation_index

CELL: Zyx = (1, 256, 256)  # a part of a slice, from which many pixels are drawn
REGIONS = 12  # per class and step
KEPT = 128  # regions in memory, under 1 MB each and channel
RENEWED = 32  # a region is drawn from for so many steps, as reading one takes as long as a step
_STREAM = 2  # sets these random numbers apart from the patches' of the same seed

Patches = npt.NDArray[np.float32]


class PixelBatch(NamedTuple):
    """patches (N, C, 32, 32) float32, whose pixel [16, 16] is of class label (N,): int64, 0 background, 1 neuron."""

    patches: Tensor
    label: Tensor


@dataclass(frozen=True)
class _Region:
    """A cell's image with a margin of half a patch, and where in the cell each class is."""

    image: Patches  # (c, y, x)
    places: tuple[npt.NDArray[np.int32], ...]  # per label, (n, 2): y, x in the cell


class PixelStream:
    """An endless stream of batches, addressed by step: each a pure function of seed and step."""

    def __init__(self, samples: Sequence[TrainingSample], batch: int, seed: int, augment: bool = True) -> None:
        self.samples = tuple(samples)
        self.size, self.seed, self.augment = batch, seed, augment
        self.index = annotation_index(self.samples, CELL)
        for label, what in ((NEURON, "neuron"), (BACKGROUND, "background")):
            if not self.index.count(label):
                raise UserError(
                    f"no annotated {what} in the training boxes of {', '.join(s.name for s in samples)}, test boxes "
                    "and their gap left out; annotate some, or check `values`, `box` and `slices` of [[annotations]]"
                )
        self._region = lru_cache(maxsize=KEPT)(self._read_region)

    @property
    def log_prior_odds(self) -> float:
        """By what balanced training underrates background: log (neurons / background) as annotated.

        Added to the log-odds, it makes them those of the annotated share (Saerens et al., 2002).
        """
        return log(self.index.neuron / self.index.background)

    def batch(self, step: int) -> PixelBatch:
        """The batch of a step, counted from 0."""
        numbers = (self.size - self.size // 2, self.size // 2)  # background, neuron
        patches = np.concatenate(
            [self._patches(label, n, step) for label, n in zip(LABELS, numbers, strict=True)],
        )
        if self.augment:
            patches = _varied(patches, np.random.default_rng((self.seed, _STREAM, 0, step)))
        label = torch.arange(2).repeat_interleave(torch.tensor(numbers))
        return PixelBatch(torch.from_numpy(np.ascontiguousarray(patches[..., :PATCH, :PATCH])), label)

    def _patches(self, label: int, n: int, step: int) -> Patches:
        """(n, C, 33, 33) around pixels of a class, which are each one's middle."""
        regions = min(REGIONS, n)
        rng = np.random.default_rng((self.seed, _STREAM, 1 + label, step))
        return np.concatenate(
            [
                _cut(self._drawn_region(label, slot, step), label, len(range(slot, n, regions)), rng)
                for slot in range(regions)
            ]
        )

    def _drawn_region(self, label: int, slot: int, step: int) -> _Region:
        """The region that a slot holds at a step; slots are renewed one after another, not all at once."""
        turn = (step + slot * RENEWED // REGIONS) // RENEWED
        rng = np.random.default_rng((self.seed, _STREAM, 3 + label, slot, turn))
        number, cell = self.index.draw(label, rng)
        return self._region(number, cell)

    def _read_region(self, number: int, cell: Box) -> _Region:
        sample = self.samples[number]
        image = sample.normalised(cell.grown((0, PATCH // 2, PATCH // 2)))[:, 0]
        labels = sample.labels(cell)[0]
        return _Region(image, tuple(np.argwhere(labels == label).astype(np.int32) for label in LABELS))


def _cut(region: _Region, label: int, n: int, rng: np.random.Generator) -> Patches:
    """(n, C, 33, 33): one pixel wider than the network's patch, so that mirroring keeps the middle."""
    places = region.places[LABELS.index(label)]
    y, x = places[rng.integers(len(places), size=n)].T
    views = sliding_window_view(region.image, (PATCH + 1, PATCH + 1), axis=(1, 2))
    cut: Patches = views[:, y, x].swapaxes(0, 1)
    return cut


def _varied(patches: Patches, rng: np.random.Generator) -> Patches:
    """Each in one of the eight orientations of a square, with its own brightness and gamma."""
    n = len(patches)
    result = np.empty_like(patches)
    orientation = rng.integers(8, size=n)
    for turns in range(4):
        turned = np.rot90(patches, turns, axes=(-2, -1))
        plain, flipped = orientation == turns, orientation == turns + 4
        result[plain] = turned[plain]
        result[flipped] = turned[flipped][..., ::-1]
    result *= rng.uniform(*BRIGHTNESS, size=(n, 1, 1, 1)).astype(np.float32)
    return with_gamma(result, rng.uniform(*GAMMA, size=(n, 1, 1, 1)).astype(np.float32))
