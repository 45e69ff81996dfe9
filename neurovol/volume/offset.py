"""Whether an annotation still lies where it was drawn: the raw crop it came with against the sample's pixels.

A sample that was stitched anew has moved under its annotations, a little and differently from place to place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from neurovol.errors import UserError
from neurovol.geometry import Box, Zyx, windows, zyx

COMPARED: Zyx = (32, 512, 512)  # voxels compared at once
SEARCHED: Zyx = (32, 256, 256)  # the part of the crop that is looked for
TRIED = 4  # parts, of one piece: one may hold what is no longer in the sample
MARGIN: Zyx = (8, 64, 64)  # how far around its place; half the memory of a search is this margin's
LEAST_CORRELATION = 0.5  # below it, two pieces of tissue only look alike


@dataclass(frozen=True)
class RawCrop:
    """The raw image that an annotation was drawn on; the reader has the shape of the annotation's box."""

    path: str
    reader: Any
    sample_shape: Zyx

    def identity(self) -> dict[str, Any]:
        identity: dict[str, Any] = self.reader.identity()
        return identity


def best_offset(crop_ZYX: NDArray[Any], region_ZYX: NDArray[Any]) -> tuple[Zyx, float]:
    """Where in a region the crop lies best: the place of its first voxel, and Pearson's correlation there.

    The region is at least as large along each axis; every place at which the crop fits is compared. 0.0 where
    either is of one value throughout.

    >>> region = np.random.default_rng(0).random((5, 9, 11))
    >>> place, correlation = best_offset(region[2:4, 1:7, 3:11], region)
    >>> place, round(correlation, 6)
    ((2, 1, 3), 1.0)
    """
    crop, region = (a.astype(np.float32) - np.float32(a.mean()) for a in (crop_ZYX, region_ZYX))
    fits = zyx(r - c + 1 for r, c in zip(region.shape, crop.shape, strict=True))
    spread = _spread(region, crop.shape, fits) * float(np.linalg.norm(crop.astype(np.float64)))
    # no longer than the region: what wraps around falls on places at which the crop does not fit
    fft_shape = [scipy.fft.next_fast_len(n, real=True) for n in region.shape]
    spectrum = scipy.fft.rfftn(region, fft_shape)
    spectrum *= np.conj(scipy.fft.rfftn(crop, fft_shape))
    product = scipy.fft.irfftn(spectrum, fft_shape)[tuple(slice(n) for n in fits)]
    certain = spread > 1e-6 * max(float(spread.max()), 1e-30)
    correlation = np.divide(product, spread, out=np.zeros(fits), where=certain)
    place = zyx(int(i) for i in np.unravel_index(np.argmax(correlation), fits))
    return place, float(min(1.0, correlation[place]))


def _spread(region: NDArray[np.float32], window: tuple[int, ...], fits: Zyx) -> NDArray[np.float64]:
    """The norm of what a window of the region holds, less its mean, at every place where it fits."""
    total, squares = (_window_sums(a, window, fits) for a in (region, region.astype(np.float64) ** 2))
    return np.sqrt(np.clip(squares - total**2 / np.prod(window), 0, None))


def _window_sums(array: NDArray[Any], window: tuple[int, ...], fits: Zyx) -> NDArray[np.float64]:
    sums: NDArray[np.float64] = array.astype(np.float64)
    for axis, (length, n) in enumerate(zip(window, fits, strict=True)):
        upto = np.cumsum(sums, axis=axis)
        upto = np.concatenate([np.zeros_like(np.take(upto, [0], axis)), upto], axis)
        sums = np.take(upto, range(length, length + n), axis) - np.take(upto, range(n), axis)
    return sums


def check_crop(name: str, box: Box, crop: RawCrop, image: Any, channel: int) -> None:
    """Refuse an annotation whose raw crop is not what the sample holds in its box, voxel by voxel.

    `image` is read as read(box, channels). The UserError names the offset at which the crop fits best: of
    the part that differs most and has most structure, searched within ±MARGIN. Values count, not dtypes.
    """
    differ, telling, most = 0, None, 0.0
    for piece in _pieces(box, COMPARED):
        wrong, structure = _difference(piece, box, crop, image, channel)
        differ += wrong
        if wrong and (telling is None or wrong * structure > most):
            telling, most = piece, wrong * structure
    if telling is None:
        return
    parts = sorted(_parts(telling, box), key=lambda p: -prod(_difference(p, box, crop, image, channel)))
    searches = (_offset_of(part, box, crop, image, channel) for part in parts[:TRIED])
    offset, correlation = max(searches, key=lambda found: found[1])
    raise UserError(
        f"{name}: its raw crop {crop.path} differs from the sample in {differ} of {box.size} voxels; "
        + _advice(box, offset, correlation, crop.sample_shape)
    )


def _advice(box: Box, offset: Zyx, correlation: float, sample_shape: Zyx) -> str:
    if correlation < LEAST_CORRELATION:
        return (
            f"it matches nowhere within ±{MARGIN} voxels (z, y, x; the best correlation is {correlation:.2f}): "
            f"check that it is of this sample and channel, or draw it again"
        )
    best = f"it matches best at offset {offset} (z, y, x; correlation {correlation:.2f}): "
    moved = box.shifted(offset)
    if offset == (0, 0, 0):
        return best + "the sample's values have changed, not its place; cut the crop out anew and check the annotation"
    if not Box.of_shape(sample_shape).contains(moved):
        return best + "there it leaves the sample; draw it again"
    return best + f"move its `box` to {[list(pair) for pair in moved.pairs]}, or draw it again"


def _pieces(box: Box, shape: Zyx) -> Iterator[Box]:
    return (window.write for window in windows(box, shape, (0, 0, 0), (1, 1, 1)))


def _negative(offset: Zyx) -> Zyx:
    return zyx(-o for o in offset)


def _parts(piece: Box, box: Box) -> list[Box]:
    """The piece in parts of SEARCHED voxels, moved inwards at the end of the box."""
    shape = zyx(min(n, s) for n, s in zip(box.shape, SEARCHED, strict=True))
    whole = Box.of_shape(shape)
    return [whole.shifted(part.start).moved_into(box) for part in _pieces(piece, SEARCHED)]


def _difference(piece: Box, box: Box, crop: RawCrop, image: Any, channel: int) -> tuple[int, float]:
    """How many voxels differ, and the crop's standard deviation: together they tell where a search tells most."""
    drawn = crop.reader.read(piece.shifted(_negative(box.start)), (0,))[0]
    return int(np.count_nonzero(drawn != image.read(piece, (channel,))[0])), float(drawn.std())


def _offset_of(part: Box, box: Box, crop: RawCrop, image: Any, channel: int) -> tuple[Zyx, float]:
    region = part.grown(MARGIN).intersect(Box.of_shape(crop.sample_shape))
    drawn = crop.reader.read(part.shifted(_negative(box.start)), (0,))[0]
    place, correlation = best_offset(drawn, image.read(region, (channel,))[0])
    return zyx(r + p - a for r, p, a in zip(region.start, place, part.start, strict=True)), correlation
