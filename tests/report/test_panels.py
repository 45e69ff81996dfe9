import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from neurovol.report.colours import AGREEMENT, Agreement, rgb
from neurovol.report.panels import (
    AGREEMENT_LOOK,
    ROOM_FOR_BAR,
    Fit,
    above,
    agreement,
    encoded,
    fitted,
    grey,
    overlay,
    painted,
    scale_bar,
    with_scale_bar,
)

lengths = st.integers(1, 3000)
sizes = st.floats(0.05, 50)


def test_window_ends_are_black_and_white_and_nan_is_black():
    plane = np.array([[5.0, 10.0, 15.0, 20.0, 25.0, np.nan]])
    assert grey(plane, (10, 20)).tolist() == [[0, 0, 128, 255, 255, 0]]


def test_a_window_without_width_does_not_divide_by_zero():
    assert grey(np.full((2, 2), 7, np.uint16), (7, 7)).tolist() == [[0, 0], [0, 0]]


def test_uint8_probabilities_meet_the_threshold_as_their_fraction_does():
    values = np.arange(256, dtype=np.uint8)
    for threshold in (0.2, 0.5, 0.8):
        assert (above(values, threshold) == (values / np.float32(255) >= threshold)).all()


def test_agreement_names_every_combination():
    #                unlabelled background neuron ignore
    annotation = np.array([[0, 1, 2, 3], [0, 1, 2, 3]], np.uint8)
    predicted = np.array([[True] * 4, [False] * 4])
    a = Agreement
    expected = [[a.UNSCORED, a.FP, a.TP, a.UNSCORED], [a.NONE, a.NONE, a.FN, a.NONE]]
    assert agreement(annotation, predicted).tolist() == expected


def test_without_annotation_nothing_is_scored():
    assert agreement(None, np.array([[True, False]])).tolist() == [[Agreement.UNSCORED, Agreement.NONE]]


def test_outlines_have_the_colour_of_their_agreement():
    classes = np.zeros((7, 21), np.uint8)
    for place, cell in enumerate((Agreement.TP, Agreement.FP, Agreement.FN)):
        classes[1:6, 7 * place + 1 : 7 * place + 6] = cell
    picture = painted(np.full(classes.shape, 100, np.uint8), classes, AGREEMENT_LOOK)
    for place, cell in enumerate((Agreement.TP, Agreement.FP, Agreement.FN)):
        assert tuple(picture[1, 7 * place + 1]) == rgb(AGREEMENT[cell].on_dark)
        inside = picture[3, 7 * place + 3].astype(int)
        assert tuple(inside) != (100, 100, 100)
        towards = np.sign(np.array(rgb(AGREEMENT[cell].on_dark)) - 100)
        assert (np.sign(inside - 100) == towards).all()
    assert tuple(picture[0, 0]) == (100, 100, 100)


def test_unscored_predictions_are_outlined_only():
    classes = np.zeros((7, 7), np.uint8)
    classes[1:6, 1:6] = Agreement.UNSCORED
    picture = painted(np.full(classes.shape, 100, np.uint8), classes, AGREEMENT_LOOK)
    assert tuple(picture[3, 3]) == (100, 100, 100)
    assert tuple(picture[1, 1]) == rgb(AGREEMENT[Agreement.UNSCORED].on_dark)


@given(lengths, lengths, sizes, sizes)
@settings(max_examples=60, deadline=None)
def test_pictures_keep_true_proportions_and_limits(v, h, size_v, size_h):
    fit = fitted((v, h), (size_v, size_h), max_width=420, max_height=630)
    assert 1 <= fit.width <= 420
    assert 1 <= fit.height <= 630
    assert fit.width * fit.um_per_px == pytest.approx(h * size_h)
    if fit.width > 20 and fit.height > 20:
        assert fit.height * fit.um_per_px == pytest.approx(v * size_v, rel=0.06)


@given(st.integers(20, 1200), st.floats(0.01, 100))
@settings(max_examples=60, deadline=None)
def test_scale_bars_are_round_and_take_a_tenth_to_a_quarter_of_the_width(width, um_per_px):
    bar = scale_bar(width, um_per_px)
    assert f"{bar.length_um:.0e}"[0] in "125"
    assert 0.099 <= bar.length_um / (width * um_per_px) <= 0.2501
    assert abs(bar.length_px * um_per_px - bar.length_um) <= um_per_px / 2 * 1.001


def test_the_drawn_bar_is_as_long_as_its_label_says():
    picture = with_scale_bar(np.zeros((300, 400, 3), np.uint8), um_per_px=0.5)
    rows = (picture == 255).all(axis=2).sum(axis=1)  # 50 µm at 0.5 µm per pixel
    assert rows.max() == 100
    assert scale_bar(400, 0.5).label == "50 µm"


def test_anisotropic_planes_are_stretched_and_their_bar_measures_the_horizontal():
    fit = fitted((13, 100), (5.0, 2.0), max_width=200)
    assert fit == Fit(200, 65, 1.0)
    picture = overlay(np.zeros((13, 100), np.uint16), (0, 1), fit, None, {})
    assert (picture == 255).all(axis=2).sum(axis=1).max() == 50


def test_a_flat_picture_carries_its_bar_below_the_tissue():
    tissue = np.full((11, 300, 3), 77, np.uint8)
    picture = with_scale_bar(tissue, 1.0)
    assert (picture[:11] == 77).all()
    assert picture.shape[0] > 11
    tall = np.full((ROOM_FOR_BAR, 300, 3), 77, np.uint8)
    assert with_scale_bar(tall, 1.0).shape == tall.shape


@pytest.mark.parametrize("kind", ["jpeg", "png"])
def test_encoded_pictures_open_at_their_size(kind):
    picture = np.zeros((31, 53, 3), np.uint8)
    image = Image.open(io.BytesIO(encoded(picture, kind)))
    assert (image.size, image.format) == ((53, 31), kind.upper())
