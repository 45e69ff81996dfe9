"""Every colour of the report and of its pictures, defined once: on dark pictures, and on light paper.

The three agreement colours stay apart for all common forms of colour blindness: the smallest distance
between two of them in CIE Lab, simulated after Machado et al. 2009, is above 25 on either ground.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Agreement(IntEnum):
    """What a voxel of a prediction is, against the annotation."""

    NONE = 0  # background, agreed or not annotated
    TP = 1
    FP = 2
    FN = 3
    UNSCORED = 4  # predicted where nobody annotated, or where the annotation says ignore


@dataclass(frozen=True, slots=True)
class Ink:
    """One meaning's colour on dark pictures and on light paper, and its words in a legend."""

    on_dark: str
    on_light: str
    title: str = ""


AGREEMENT = {
    Agreement.TP: Ink("#35b6e6", "#1a85b8", "neuron in both"),
    Agreement.FP: Ink("#ffb000", "#b87500", "only predicted (false positive)"),
    Agreement.FN: Ink("#dc267f", "#b0185f", "only annotated (missed, false negative)"),
    Agreement.UNSCORED: Ink("#e8edf2", "#7b8794", "predicted where nothing is annotated: not scored"),
}
MASK = Ink("#9be564", "#4d9221", "neuron")  # a mask shown alone, with nothing to compare it to
TISSUE = Ink("#f5e663", "#8f8000", "tissue")
IGNORED = Ink("#8a94a0", "#8a94a0", "ignored: never scored")
GROUND = "#0e1116"  # behind pictures

METHOD_COLOURS = {  # keys as in data.METHODS
    "cnn2d": Ink("#aab4bf", "#8a94a0"),
    "unet3d_sparse": Ink("#d9a566", "#b5722a"),
    "unet3d_pseudo": Ink("#4db6c9", "#0f6e84"),
    "other": Ink("#b7a3d9", "#6b5b95"),  # any method the report does not know
}


def method_key(method: str) -> str:
    """The key of a method's colour; one shared colour for methods the report does not know."""
    return method if method in METHOD_COLOURS else "other"


def rgb(colour: str) -> tuple[int, int, int]:
    """The three bytes of a hex colour.

    >>> rgb("#35b6e6")
    (53, 182, 230)
    """
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
