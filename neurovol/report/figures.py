"""Single pictures for Prefect's artifacts and quick looks."""

from __future__ import annotations

import re
from typing import Any, Literal

from numpy.typing import NDArray

from neurovol.report.data import Probability
from neurovol.report.panels import JPEG_QUALITY, MASK_LOOK, above, data_uri, encoded, fitted, overlay

MOST_BYTES = 20_000  # of a picture: a page of six stays below 200 kB
QUALITIES = (JPEG_QUALITY, 70, 55, 40, 25)  # noise is dear


def preview_jpeg(
    image_2d: NDArray[Any],
    probability_2d: Probability | None,
    window: tuple[float, float],
    pixel_size_um: tuple[float, float],
    most_px: int = 900,
    threshold: float = 0.5,
    most_bytes: int = MOST_BYTES,
) -> bytes:
    """A plane (v, h) or (v, h, RGB) in its true proportions, the segmentation outlined over it, with a scale bar.

    `window` are the intensities shown black and white, `pixel_size_um` is (v, h); probabilities are float, or uint8
    with p = value / 255. The longer side has at most `most_px`; the file at most `most_bytes`, unless the coarsest
    quality has more.
    """
    fit = fitted((image_2d.shape[0], image_2d.shape[1]), pixel_size_um, most_px, most_px)
    mask = None if probability_2d is None else above(probability_2d, threshold).astype("uint8")
    picture = overlay(image_2d, window, fit, mask, MASK_LOOK)
    for quality in QUALITIES:
        content = encoded(picture, "jpeg", quality)
        if len(content) <= most_bytes:
            break
    return content


def markdown_picture(content: bytes, alt: str, kind: Literal["jpeg", "png"] = "png") -> str:
    """A picture for a Prefect markdown artifact, which shows data URIs (image artifacts overflow the page)."""
    plain = re.sub(r"[^\w .,:;=%µ×–-]", " ", alt)  # brackets would end the picture early
    return f"![{plain}]({data_uri(content, kind)})"
