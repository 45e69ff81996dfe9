"""Pictures as arrays: a plane stretched to grey, masks over it, a scale bar, and the bytes of a file.

Planes are (v, h); pictures are uint8 RGB (height, width, 3) with square pixels in µm.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from neurovol.report.colours import AGREEMENT, GROUND, IGNORED, MASK, TISSUE, Agreement, rgb

Rgb = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Classes = NDArray[np.uint8]

UNLABELLED, BACKGROUND, NEURON, IGNORE = 0, 1, 2, 3  # of an annotation
LARGEST_ZOOM = 4  # screen pixels per voxel, at most: beyond it a small plane only grows blocky
ROOM_FOR_BAR = 90  # px; a flatter picture carries its scale bar below instead of on the tissue


@dataclass(frozen=True, slots=True)
class Fit:
    """The size at which a plane is drawn, in square pixels."""

    width: int
    height: int
    um_per_px: float


def fitted(shape: tuple[int, int], pixel_size_um: tuple[float, float], max_width: int, max_height: int = 2000) -> Fit:
    """The largest picture of a plane with its true proportions.

    >>> fitted((30, 667), (5.0, 2.0), max_width=480)
    Fit(width=480, height=54, um_per_px=2.779166666666667)
    """
    height_um, width_um = (n * size for n, size in zip(shape, pixel_size_um, strict=True))
    um_per_px = max(width_um / max_width, height_um / max_height, min(pixel_size_um) / LARGEST_ZOOM)
    width = max(1, round(width_um / um_per_px))
    return Fit(width, max(1, round(height_um / um_per_px)), width_um / width)


def grey(plane: NDArray[Any], window: tuple[float, float]) -> NDArray[np.uint8]:
    """Intensities between `window` as 0 to 255; what is not a number is black."""
    low, high = window
    scaled = (plane.astype(np.float32) - low) / max(high - low, 1e-12) * 255
    return np.asarray(np.clip(np.nan_to_num(scaled, nan=0.0), 0, 255).round(), np.uint8)


def above(probability: NDArray[Any], threshold: float) -> Mask:
    """True where a probability (float, or uint8 with p = value / 255) is at least `threshold`."""
    scale = 255 if probability.dtype == np.uint8 else 1
    return np.asarray(probability.astype(np.float32) >= np.float32(threshold * scale))


def agreement(annotation: NDArray[np.uint8] | None, predicted: Mask) -> Classes:
    """Each pixel's `Agreement`; without an annotation nothing is scored."""
    if annotation is None:
        return np.where(predicted, Agreement.UNSCORED, Agreement.NONE).astype(np.uint8)
    classes = np.full(predicted.shape, Agreement.NONE, np.uint8)
    scored = (annotation == BACKGROUND) | (annotation == NEURON)
    neuron = annotation == NEURON
    classes[predicted & neuron] = Agreement.TP
    classes[predicted & ~neuron & scored] = Agreement.FP
    classes[~predicted & neuron] = Agreement.FN
    classes[predicted & ~scored] = Agreement.UNSCORED
    return classes


def resized(plane: NDArray[np.uint8], fit: Fit, smooth: bool) -> NDArray[np.uint8]:
    """A plane at its picture's size: intensities smoothly, classes by the nearest pixel."""
    image = Image.fromarray(np.ascontiguousarray(plane))
    method = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST  # bicubic averages when it shrinks
    return np.array(image.resize((fit.width, fit.height), method))


@dataclass(frozen=True, slots=True)
class Look:
    """How a class is drawn: its colour, how much of it lies over the inside, and whether its outline is full."""

    colour: str
    fill: float
    outline: bool = True


AGREEMENT_LOOK: Mapping[int, Look] = {
    Agreement.TP: Look(AGREEMENT[Agreement.TP].on_dark, 0.30),
    Agreement.FP: Look(AGREEMENT[Agreement.FP].on_dark, 0.45),
    Agreement.FN: Look(AGREEMENT[Agreement.FN].on_dark, 0.45),
    Agreement.UNSCORED: Look(AGREEMENT[Agreement.UNSCORED].on_dark, 0.0),
}
ANNOTATION_LOOK: Mapping[int, Look] = {
    UNLABELLED: Look(GROUND, 0.60, outline=False),
    NEURON: Look(MASK.on_dark, 0.30),
    IGNORE: Look(IGNORED.on_dark, 0.40),
}
MASK_LOOK: Mapping[int, Look] = {1: Look(MASK.on_dark, 0.20)}
TISSUE_LOOK: Mapping[int, Look] = {1: Look(TISSUE.on_dark, 0.0)}


def painted(shades: NDArray[np.uint8], classes: Classes, looks: Mapping[int, Look]) -> Rgb:
    """A picture, grey or RGB, with classes (height, width) laid over it, as (height, width, 3)."""
    picture = (np.repeat(shades[..., None], 3, axis=2) if shades.ndim == 2 else shades).astype(np.float32)
    edges = ndimage.maximum_filter(classes, 3, mode="nearest") != ndimage.minimum_filter(classes, 3, mode="nearest")
    for value, look in looks.items():
        inside = classes == value
        colour = np.array(rgb(look.colour), np.float32)
        picture[inside] += (colour - picture[inside]) * look.fill
        if look.outline:
            picture[inside & edges] = colour
    return np.asarray(picture.round(), np.uint8)


def overlay(
    plane: NDArray[Any], window: tuple[float, float], fit: Fit, classes: Classes | None, looks: Mapping[int, Look]
) -> Rgb:
    """A plane at its picture's size, with classes over it and a scale bar."""
    shades = resized(grey(plane, window), fit, smooth=True)
    drawn = np.zeros(shades.shape[:2], np.uint8) if classes is None else resized(classes, fit, smooth=False)
    return with_scale_bar(painted(shades, drawn, {} if classes is None else looks), fit.um_per_px)


@dataclass(frozen=True, slots=True)
class ScaleBar:
    """A bar of a round length."""

    length_um: float
    length_px: int

    @property
    def label(self) -> str:
        return f"{self.length_um / 1000:g} mm" if self.length_um >= 1000 else f"{self.length_um:g} µm"


def scale_bar(width_px: int, um_per_px: float) -> ScaleBar:
    """The longest bar of 1, 2 or 5 times a power of ten µm within a quarter of the picture's width.

    >>> scale_bar(480, 2.0)
    ScaleBar(length_um=200.0, length_px=100)
    """
    room_um = width_px * um_per_px / 4
    power = 10.0 ** np.floor(np.log10(room_um))
    length_um = float(max(step * power for step in (1, 2, 5) if step * power <= room_um * (1 + 1e-9)))
    return ScaleBar(length_um, max(1, round(length_um / um_per_px)))


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont:
    # matplotlib ships a font with µ; pillow's own has none
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)


def with_scale_bar(picture: Rgb, um_per_px: float) -> Rgb:
    """The picture with a white scale bar in its lower right corner, in a strip of its own where it is flat."""
    height, width = picture.shape[:2]
    size = min(max(11, width // 30), 22)
    bar = scale_bar(width, um_per_px)
    thick, margin = max(3, size // 5), max(6, size // 2)
    strip = 0 if height >= ROOM_FOR_BAR else size + thick + 2 * margin
    image = Image.new("RGB", (width, height + strip), GROUND)
    image.paste(Image.fromarray(picture))
    pen = ImageDraw.Draw(image)
    right, bottom = width - margin, height + strip - margin
    pen.rectangle((right - bar.length_px - 2, bottom - thick - 2, right + 1, bottom + 1), fill=GROUND)
    pen.rectangle((right - bar.length_px, bottom - thick, right - 1, bottom - 1), fill="white")
    above = (right, bottom - thick - 3)
    pen.text(above, bar.label, "white", _font(size), anchor="rd", stroke_width=2, stroke_fill=GROUND)
    return np.array(image)


JPEG_QUALITY = 82


def encoded(picture: Rgb, kind: Literal["jpeg", "png"], quality: int = JPEG_QUALITY) -> bytes:
    """A picture's file: JPEG with full colour resolution (outlines stay crisp), or PNG with a palette."""
    image = Image.fromarray(picture)
    buffer = io.BytesIO()
    if kind == "jpeg":
        image.save(buffer, "JPEG", quality=quality, subsampling=0)  # to optimize, pillow has no room for noise
    else:  # 128 colours are enough for greys and a few overlays, at a third of the size
        image.quantize(128, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def data_uri(content: bytes, kind: Literal["jpeg", "png"]) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
