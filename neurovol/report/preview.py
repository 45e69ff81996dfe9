"""A sample's preview: its maximum along z, every channel in its colour, pixels square, with a scale bar."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from neurovol.report.colours import rgb
from neurovol.report.panels import LARGEST_ZOOM, Fit, Rgb, resized, with_scale_bar

BRIGHTEST = 99.8  # percentile of a projection that is shown at full brightness
GAMMA = 0.7  # shows the dim half of a tissue beside its brightest cells
SMALLEST_SIDE = 512  # px of the longer side: smaller planes are enlarged to it
LARGEST_SIDE = 2048  # px


def preview_fit(shape: tuple[int, int], pixel_size_um: tuple[float, float]) -> Fit:
    """The size of a plane (v, h) with square pixels: the finer axis as it is, or enlarged by a whole number.

    >>> preview_fit((255, 667), (4.0, 2.0))
    Fit(width=667, height=510, um_per_px=2.0)
    >>> preview_fit((100, 200), (1.0, 1.0))
    Fit(width=600, height=300, um_per_px=0.3333333333333333)
    """
    finest = min(pixel_size_um)
    height_um, width_um = (n * size for n, size in zip(shape, pixel_size_um, strict=True))
    longer = max(height_um, width_um)
    zoom = min(LARGEST_ZOOM, max(1, -(-SMALLEST_SIDE // round(longer / finest))))
    um_per_px = max(finest / zoom, longer / LARGEST_SIDE)
    return Fit(max(1, round(width_um / um_per_px)), max(1, round(height_um / um_per_px)), um_per_px)


def projected_display(planes: NDArray[Any], display: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Per channel (low, high) at which a maximum projection (c, v, h) is shown, from those of a sample's voxels.

    The deeper the sample, the more pixels hold one of its brightest voxels: of thick ones nearly all would be white.

    >>> projected_display(np.array([[[1, 50, 400]]]), [(2, 100)])
    [(2, 398.6)]
    """
    highs = (
        max(float(high), float(np.percentile(plane, BRIGHTEST)))
        for plane, (_, high) in zip(planes, display, strict=True)
    )
    return [(low, round(high, 3)) for (low, _), high in zip(display, highs, strict=True)]


def coloured(
    planes: NDArray[Any], display: Sequence[tuple[float, float]], colours: Sequence[str], fit: Fit, gamma: float = GAMMA
) -> Rgb:
    """Planes (c, v, h) as one picture: each from its display range's low (black) to its high (its full colour), added.

    `colours` are hex without "#", as OME-Zarr has them.
    """
    picture = np.zeros((fit.height, fit.width, 3), np.uint16)  # 255 a channel, of which there are few
    for plane, (low, high), colour in zip(planes, display, colours, strict=True):
        bright = np.clip((plane.astype(np.float32) - low) / max(high - low, 1e-12), 0, 1) ** np.float32(gamma)
        shades = resized(np.asarray((bright * 255).round(), np.uint8), fit, smooth=True)
        for part, strength in enumerate(rgb(f"#{colour}")):
            picture[..., part] += (shades * np.float32(strength / 255)).round().astype(np.uint16)
    return np.minimum(picture, 255, out=picture).astype(np.uint8)


def preview_file(
    planes: NDArray[Any],
    display: Sequence[tuple[float, float]],
    colours: Sequence[str],
    pixel_size_um: tuple[float, float],
) -> bytes:
    """The PNG of a sample's maximum projection (c, y, x); the same bytes from the same planes.

    Grey is stored as grey, without loss.
    """
    fit = preview_fit((planes.shape[1], planes.shape[2]), pixel_size_um)
    picture = coloured(planes, projected_display(planes, display), colours, fit)
    image = Image.fromarray(with_scale_bar(picture, fit.um_per_px))
    buffer = io.BytesIO()
    (image if len(planes) > 1 else image.convert("L")).save(buffer, "PNG")
    return buffer.getvalue()
