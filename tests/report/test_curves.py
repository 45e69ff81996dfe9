import io
import re

import numpy as np
import pytest
from PIL import Image

from neurovol.report.curves import HEIGHT, POINTS, WIDTH, curve_panel, curve_png, running_mean, thinned
from neurovol.report.data import Curve


def points(text: str) -> np.ndarray:
    return np.array([[float(v) for v in pair.split(",")] for pair in text.split()])


def test_running_mean_of_a_constant_is_the_constant():
    assert running_mean(np.full(17, 3.0), 5) == pytest.approx(np.full(17, 3.0))


@pytest.mark.parametrize("count", [1, 2, POINTS, POINTS + 1, 100_003])
def test_thinning_keeps_the_first_and_the_last(count):
    kept = thinned(count)
    assert (kept[0], kept[-1]) == (0, count - 1)
    assert len(kept) <= POINTS


@pytest.mark.parametrize("losses", [[1.0, 0.01, 0.001], [0.5, 0.4, 0.3], [0.0, 0.0, 0.0], [1.0, 0.0, -1.0]])
def test_curves_stay_within_their_panel_and_go_rightwards(losses):
    panel = curve_panel(Curve("cnn2d", [1, 2, 3], losses))
    x, y = points(panel.raw).T
    assert (np.diff(x) > 0).all()
    assert ((x >= 0) & (x <= WIDTH) & (y >= 0) & (y <= HEIGHT)).all()
    assert panel.y_ticks


def test_a_falling_loss_falls_on_the_page():
    panel = curve_panel(Curve("cnn2d", [1, 2, 3], [1.0, 0.1, 0.01]))
    assert (np.diff(points(panel.raw)[:, 1]) > 0).all()  # SVG's y points down


def test_losses_that_are_not_numbers_are_left_out():
    panel = curve_panel(Curve("cnn2d", [1, 2, 3, 4], [1.0, float("nan"), 0.5, float("inf")]))
    assert len(points(panel.raw)) == 2
    assert not re.search("nan|inf", panel.raw + panel.smooth)
    assert curve_panel(Curve("cnn2d", [1], [1.0])) is None


@pytest.mark.parametrize(
    "curves",
    [[], [Curve("cnn2d", [], [])], [Curve("cnn2d", [1, 2, 3], [1, 0.1, 0.01]), Curve("mine", [1, 2], [0.4, 0.4])]],
)
def test_curves_become_a_png_whatever_they_hold(curves):
    assert Image.open(io.BytesIO(curve_png(curves))).format == "PNG"
