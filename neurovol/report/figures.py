"""Single pictures for Prefect's artifacts and quick looks."""

from __future__ import annotations

import re
from typing import Any

from numpy.typing import NDArray

from neurovol.report.data import Probability
from neurovol.report.panels import MASK_LOOK, above, data_uri, encoded, fitted, overlay


def preview_png(
    image_2d: NDArray[Any],
    probability_2d: Probability | None,
    window: tuple[float, float],
    pixel_size_um: tuple[float, float],
    max_width: int = 900,
    threshold: float = 0.5,
) -> bytes:
    """A plane (v, h) in its true proportions, the segmentation outlined over it, with a scale bar.

    `window` are the intensities shown black and white, `pixel_size_um` is (v, h); probabilities are
    float, or uint8 with p = value / 255. At most `max_width` px wide and 1.5 times as high.
    """
    fit = fitted((image_2d.shape[0], image_2d.shape[1]), pixel_size_um, max_width, max_width * 3 // 2)
    mask = None if probability_2d is None else above(probability_2d, threshold).astype("uint8")
    return encoded(overlay(image_2d, window, fit, mask, MASK_LOOK), "png")


def markdown_picture(png: bytes, alt: str) -> str:
    """A picture for a Prefect markdown artifact, which shows data URIs (image artifacts overflow the page)."""
    plain = re.sub(r"[^\w .,:;=%µ×–-]", " ", alt)  # brackets would end the picture early
    return f"![{plain}]({data_uri(png, 'png')})"
