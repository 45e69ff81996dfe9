from itertools import combinations

import numpy as np
import pytest

from neurovol.report.colours import AGREEMENT, METHOD_COLOURS, Agreement, rgb
from neurovol.report.data import METHODS

MACHADO = {  # Machado, Oliveira, Fernandes 2009, severity 1, linear RGB
    "normal": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
TO_XYZ = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]


def lab(colour: str, vision: str) -> np.ndarray:
    c = np.array(rgb(colour)) / 255
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    xyz = np.array(TO_XYZ) @ np.clip(np.array(MACHADO[vision]) @ linear, 0, 1) / np.array([0.95047, 1, 1.08883])
    x, y, z = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("vision", MACHADO)
@pytest.mark.parametrize("ground", ["on_dark", "on_light"])
def test_agreement_colours_stay_apart_for_every_kind_of_colour_vision(vision, ground):
    colours = [getattr(AGREEMENT[a], ground) for a in (Agreement.TP, Agreement.FP, Agreement.FN)]
    assert min(np.linalg.norm(lab(a, vision) - lab(b, vision)) for a, b in combinations(colours, 2)) > 25


def test_every_method_has_a_colour():
    assert set(METHODS) < set(METHOD_COLOURS)
