"""Random variants of a patch: what an expert would label alike.

Kinds and strengths follow the lab's own 3D training code: brightness ×0.9 to 1.1, gamma 0.9 to 1.1,
noise of variance up to 5e-5, blur of σ 1 to 1.5 voxels, each on 15 % of the patches; mirroring on all axes
and quarter turns in the plane on every patch, as tissue has no handedness.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

SHARE = 0.15
BRIGHTNESS = GAMMA = (0.9, 1.1)
NOISE_VARIANCE = 5e-5
BLUR_SIGMA = (1.0, 1.5)

Image = npt.NDArray[np.float32]


def mirrored(arrays: Sequence[npt.NDArray[Any]], rng: np.random.Generator) -> list[npt.NDArray[Any]]:
    """All arrays alike, each (…, z, y, x), mirrored on random axes and turned in the plane.

    Quarter turns where y and x are equally long, half turns otherwise; shapes stay.
    """
    axes = tuple(axis for axis in (-3, -2, -1) if rng.random() < 0.5)
    turns = int(rng.integers(4))
    if arrays[0].shape[-2] != arrays[0].shape[-1]:
        turns = turns // 2 * 2
    return [np.ascontiguousarray(np.rot90(np.flip(a, axes), turns, axes=(-2, -1))) for a in arrays]


def varied(image_CZYX: Image, rng: np.random.Generator) -> Image:
    """The image with random brightness, gamma, noise and blur."""
    brightness, gamma, noise, blur = rng.random(4) < SHARE
    if brightness:
        image_CZYX = image_CZYX * np.float32(rng.uniform(*BRIGHTNESS))
    if gamma:
        image_CZYX = with_gamma(image_CZYX, np.float32(rng.uniform(*GAMMA)))
    if noise:
        sigma = np.float32(np.sqrt(rng.uniform(0, NOISE_VARIANCE)))
        image_CZYX = image_CZYX + sigma * rng.standard_normal(image_CZYX.shape, np.float32)
    if blur:
        image_CZYX = gaussian_filter(image_CZYX, (0, *[rng.uniform(*BLUR_SIGMA)] * 3))
    return image_CZYX


def with_gamma(image: Image, gamma: npt.NDArray[np.float32] | np.float32) -> Image:
    """|image| to the power of gamma, its sign kept: values below the 1st percentile are negative."""
    result: Image = np.copysign(np.abs(image) ** gamma, image)
    return result
