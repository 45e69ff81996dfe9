"""Where a sample has tissue: a mask of a coarse pyramid level, made to lose none of it.

The rule, one threshold per channel from the whole level's histogram, then shapes in space:

1. Voxels of exactly 0 are what a stitcher fills in, and never tissue.
2. Empty surroundings hold nothing but noise, so they are a narrow peak at the bottom of the histogram. It is split
   off where Kittler and Illingworth's minimum error is smallest (Pattern Recognition 19, 41, 1986), on the square
   root of intensities, on which light has about the same noise everywhere (Anscombe, Biometrika 35, 246, 1948).
   Otsu's threshold would halve the tissue instead, as its brightness falls with depth.
3. What is split off counts as surroundings only if it is narrow (NARROW) and stands out (PROMINENT) against what
   lies above it, as noise averaged over a coarse voxel does, and dim tissue, full of cells and vessels, does not.
   Otherwise it is split once more; where nothing is left to split, all voxels above 0 are tissue.
   A channel that cannot tell its surroundings, as one in which few cells are labelled, is judged by its noise where
   the others tell theirs.
4. The threshold lies SIGMAS standard deviations of that noise above its median. A coarse voxel averages tens to
   thousands of voxels, so what stays below would not be seen in a single voxel of level 0.
5. A voxel above the threshold in any channel is tissue. Dark holes up to twice CLOSING_UM wide, which vessels are,
   are closed, unless they open to the outside of the volume; then the mask grows by MARGIN voxels along every axis.

Neither the threshold nor the shapes depend on how the volume is cut: histograms add up, and what a voxel becomes
depends on its surroundings up to `tissue_halo`.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import floor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from neurovol.geometry import Box, Zyx, windows, zyx
from neurovol.levels import coarsening
from neurovol.volume.reads import Reads

VERSION = 1  # raise it with any change to what a mask holds
COARSE_UM = 8.0  # a cell body's width: finer voxels tell no more of where tissue is
ABOUT = 0.9  # of COARSE_UM is coarse enough

# Set on phantoms and on mouse cortex: surroundings have 0.005 to 0.038 and 11 to 100. Tissue of 0.3 of the brightness
# of the rest, the dimmest that phantoms have deep in a slab, has 0.08 or more; at 0.15 it would pass for surroundings.
NARROW = 0.04  # noise of the surroundings, in multiples of how far above them tissue lies
PROMINENT = 5.0  # how much denser the histogram is at the surroundings' peak than right above the threshold
SIGMAS = 5.0
SMALLEST_SHARE = 0.01  # of the voxels above 0: smaller surroundings are not worth telling from tissue

CLOSING_UM = 50.0  # large vessels of the cortex are up to 100 µm wide
MOST_CLOSING = 8  # voxels: bounds the halo where a small sample's coarsest level is still fine
MARGIN = 2  # voxels
PIECE: Zyx = (32, 128, 128)  # looked at once; 50 MB with halo and distances

Mask = NDArray[np.bool_]
VoxelSize = tuple[float, float, float]


def tissue_level(shape: Zyx, voxel_size_um: VoxelSize, factors: Sequence[Zyx]) -> int:
    """The finest level whose voxels are at least about 8 µm along every axis, else the coarsest.

    An axis of a single voxel is never halved, and not asked.

    >>> tissue_level((30, 510, 667), (5.0, 2.0, 2.0), [(1, 2, 2), (2, 2, 2), (2, 2, 2)])
    2
    >>> tissue_level((64, 256, 256), (2.0, 0.88, 0.88), [(1, 2, 2), (2, 2, 2)])
    2
    """
    for level in range(len(factors)):
        total = coarsening(factors[:level])
        sizes = (s * f for s, f, n in zip(voxel_size_um, total, shape, strict=True) if n > 1)
        if min(sizes, default=COARSE_UM) >= ABOUT * COARSE_UM:
            return level
    return len(factors)


def threshold_of(counts: NDArray[np.int64]) -> int:
    """The intensity above which a voxel is tissue, from how often each intensity occurs, 0 first.

    0 where no surroundings but exact zeros can be told from tissue. Half noise around 100, half tissue up to 400:

    >>> noise, tissue = np.arange(96, 105), np.arange(200, 401)
    >>> counts = np.zeros(500, np.int64)
    >>> counts[noise], counts[tissue] = [10, 100, 500, 2000, 3000, 2000, 500, 100, 10], 41
    >>> threshold_of(counts)
    105
    >>> counts[noise] = 0
    >>> threshold_of(counts)
    0
    """
    values = np.flatnonzero(counts[1:]) + 1
    held = counts[values].astype(np.float64)
    least = SMALLEST_SHARE * held.sum()
    end = len(values)
    while end > 1:
        cut = _least_error_split(values[:end], held[:end], least)
        if cut == 0:
            break
        middle, spread = _centre(values[:cut], held[:cut])
        tissue, _ = _centre(values[cut:], held[cut:])
        threshold = _above(middle, spread)
        peak = _held_between(values, held, middle - spread, middle + spread)
        past_cut, past_threshold = (
            _held_between(values, held, low, low + 2 * spread) for low in (values[cut - 1] + 0.5, threshold + 0.5)
        )
        if peak < PROMINENT * past_cut:  # the flank of a peak, not a gap between two
            break
        if spread <= NARROW * (tissue - middle) and peak >= PROMINENT * past_threshold:
            return threshold
        end = cut
    return 0


def noise_threshold(counts: NDArray[np.int64]) -> int:
    """The intensity above which a voxel is more than noise, from how often each occurs in surroundings, 0 first.

    >>> noise_threshold(np.array([90, 0, 0, 10, 20, 10]))
    7
    """
    values = np.flatnonzero(counts[1:]) + 1
    return _above(*_centre(values, counts[values].astype(np.float64))) if len(values) else 0


def _above(middle: float, spread: float) -> int:
    return floor(middle + SIGMAS * spread)


def _least_error_split(values: NDArray[np.int64], held: NDArray[np.float64], least: float) -> int:
    """How many of the ascending values form the lower of two classes; 0 where none can hold `least` voxels.

    Kittler and Illingworth's criterion on square roots: the split under which two normal distributions fit best.
    """
    x = np.sqrt(values)
    moments = np.cumsum([held, held * x, held * x * x], axis=1)
    lower, upper = moments[:, :-1], moments[:, -1:] - moments[:, :-1]
    allowed = (lower[0] >= least) & (upper[0] >= least)
    if not allowed.any():
        return 0
    error = np.where(allowed, _misfit(lower) + _misfit(upper), np.inf)
    return int(np.argmin(error)) + 1


def _misfit(moments: NDArray[np.float64]) -> NDArray[np.float64]:
    """What a class adds to the criterion, of its count, sum and sum of squares: n ln(σ / n)."""
    n = np.maximum(moments[0], 1e-9)
    mean = moments[1] / n
    rounding = 1 / (48 * np.maximum(mean, 1) ** 2)  # variance of rounding to whole intensities, 1/12, on square roots
    variance = np.maximum(moments[2] / n - mean**2, 0) + rounding
    misfit: NDArray[np.float64] = n * (np.log(variance) / 2 - np.log(n))
    return misfit


def _centre(values: NDArray[np.int64], held: NDArray[np.float64]) -> tuple[float, float]:
    """Median and standard deviation, the latter from the lower quartile alone: tissue lies on the other side."""
    total = np.cumsum(held)
    edges = np.concatenate([[values[0] - 0.5], values + 0.5])
    lower, middle = np.interp([0.25 * total[-1], 0.5 * total[-1]], np.concatenate([[0.0], total]), edges)
    return float(middle), max(float(middle - lower) / 0.6745, 12**-0.5)


def _held_between(values: NDArray[np.int64], held: NDArray[np.float64], low: float, high: float) -> float:
    """How many voxels lie in a range, each intensity spread evenly over ± 1/2."""
    share = np.minimum(values + 0.5, high) - np.maximum(values - 0.5, low)
    return float((held * np.clip(share, 0, 1)).sum())


def tissue_halo(voxel_size_um: VoxelSize) -> Zyx:
    """How far a voxel of the mask depends on its surroundings, in voxels of that size.

    >>> tissue_halo((10.0, 8.0, 8.0))
    (12, 14, 14)
    """
    radius = closing_um(voxel_size_um)
    return zyx(2 * floor(radius / s) + MARGIN for s in voxel_size_um)


def closing_um(voxel_size_um: VoxelSize) -> float:
    """The radius by which dark holes are closed: CLOSING_UM, but MOST_CLOSING of the finest voxels at most."""
    return min(CLOSING_UM, MOST_CLOSING * min(voxel_size_um))


def tissue_mask(image: NDArray[Any], thresholds: Sequence[float], voxel_size_um: VoxelSize) -> Mask:
    """True where tissue is, (z, y, x), of an image (c, z, y, x); right from `tissue_halo` within its edges on."""
    mask = np.zeros(image.shape[1:], bool)
    for channel, threshold in zip(image, thresholds, strict=True):
        mask |= channel > threshold
    if mask.all() or not mask.any():
        return mask
    radius = closing_um(voxel_size_um) * (1 + 1e-6)  # distances of equal length round differently
    grown = _distance_to(mask, voxel_size_um) <= radius
    closed = mask if grown.all() else _distance_to(~grown, voxel_size_um) > radius
    if grown.all():
        return grown
    return np.asarray(ndimage.maximum_filter(closed | mask, size=2 * MARGIN + 1, mode="reflect"))


def _distance_to(mask: Mask, voxel_size_um: VoxelSize) -> NDArray[np.float64]:
    """How far in µm each voxel is from the nearest that is True."""
    return np.asarray(ndimage.distance_transform_edt(~mask, sampling=voxel_size_um), np.float64)


def tissue_fraction(mask: Reads, shape: Zyx, coarser: Zyx, box: Box) -> float:
    """How much of a box of level 0 is tissue, 0 to 1; 0 only if no voxel of tissue touches it.

    `shape` is that of the mask, whose voxels are `coarser` than level 0's. It is read in bounded pieces.

    >>> class Left:
    ...     def read(self, box): return np.array([[[1, 0]]], np.uint8)[box.slices]
    >>> tissue_fraction(Left(), (1, 1, 2), (4, 4, 4), Box((0, 0, 3), (4, 4, 8)))
    0.2
    """
    found = 0
    for window in windows(box.downsampled(coarser).intersect(Box.of_shape(shape)), PIECE, (0, 0, 0), (1, 1, 1)):
        z, y, x = (
            np.minimum((cells + 1) * f, stop) - np.maximum(cells * f, start)
            for cells, f, (start, stop) in zip(map(_range, window.write.pairs), coarser, box.pairs, strict=True)
        )
        found += int(np.einsum("zyx,z,y,x->", mask.read(window.write) > 0, z, y, x))
    return found / box.size if box.size else 0.0


def _range(pair: tuple[int, int]) -> NDArray[np.int64]:
    return np.arange(*pair, dtype=np.int64)
