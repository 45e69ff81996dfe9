import base64
import io
import re

import numpy as np
from PIL import Image

from neurovol.report.colours import MASK, rgb
from neurovol.report.figures import MOST_BYTES, markdown_picture, preview_jpeg


def test_preview_has_true_proportions_and_shows_the_outline():
    image = np.zeros((30, 200), np.uint16)
    probability = np.zeros((30, 200), np.uint8)
    probability[10:20, 50:90] = 200
    picture = Image.open(io.BytesIO(preview_jpeg(image, probability, (0, 100), (5.0, 2.0), most_px=800)))
    assert picture.size == (800, 300)
    near = np.abs(np.array(picture.convert("RGB")).astype(int) - rgb(MASK.on_dark)).max(axis=2) < 60
    v, h = np.nonzero(near)
    assert (h.min() // 4, h.max() // 4, v.min() // 10, v.max() // 10) == (50, 89, 10, 19)


def test_preview_without_prediction_is_grey():
    image = np.arange(35, dtype=np.float32).reshape(5, 7)
    pixels = np.array(Image.open(io.BytesIO(preview_jpeg(image, None, (0, 34), (1.0, 1.0)))).convert("RGB"))
    tissue = pixels[:16].astype(int)  # below lies the scale bar
    assert np.ptp(tissue, axis=2).max() <= 3


def test_a_preview_of_mere_noise_is_small_and_one_of_little_is_not_spoilt():
    noise = np.random.default_rng(0).integers(0, 255, (600, 600, 3)).astype(np.uint8)
    spoilt = preview_jpeg(noise, None, (0, 255), (1.0, 1.0), 400)
    assert len(spoilt) < 2 * MOST_BYTES
    plain = preview_jpeg(noise // 255, None, (0, 255), (1.0, 1.0), 400)
    assert len(plain) <= MOST_BYTES
    assert Image.open(io.BytesIO(plain)).quantization[0][0] < Image.open(io.BytesIO(spoilt)).quantization[0][0]


def test_markdown_picture_holds_the_png_and_an_alt_text_that_cannot_end_it():
    text = markdown_picture(b"\x89PNG", "a](http://x) z = 3")
    assert base64.b64decode(re.fullmatch(r"!\[[^\[\]()]*\]\(data:image/png;base64,(.*)\)", text)[1]) == b"\x89PNG"
    assert "z = 3" in text
