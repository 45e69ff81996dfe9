"""Annotations against a sample that was stitched anew: equal, moved, changed, of another sample."""

import time
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from neurovol.errors import UserError
from neurovol.geometry import Box
from neurovol.volume import offset
from neurovol.volume.offset import RawCrop, best_offset, check_crop

SHAPE = (23, 211, 223)
BOX = Box((5, 70, 80), (16, 130, 147))


@dataclass(frozen=True)
class Held:
    """An array read like a file."""

    array: np.ndarray

    def read(self, box, channels):
        return self.array[None][(list(channels), *box.slices)]

    def identity(self):
        return {}


def tissue(seed: int, shape=SHAPE) -> np.ndarray:
    """Smooth, as a microscope leaves it."""
    return (gaussian_filter(np.random.default_rng(seed).random(shape), 1.5) * 60_000).astype(np.uint16)


SAMPLE = tissue(0)


def check(crop: np.ndarray, image: np.ndarray = SAMPLE, box: Box = BOX) -> None:
    check_crop("annotation a of sample s", box, RawCrop("a.tif", Held(crop), SHAPE), Held(image), 0)


@given(st.data())
def test_the_best_place_is_where_the_crop_was_cut_from(data):
    region = np.random.default_rng(data.draw(st.integers(0, 9))).integers(0, 60_000, (7, 13, 17)).astype(np.uint16)
    shape = data.draw(st.tuples(st.integers(2, 7), st.integers(2, 13), st.integers(2, 17)))
    start = tuple(data.draw(st.integers(0, n - m)) for n, m in zip(region.shape, shape, strict=True))
    crop = region[tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))]
    place, correlation = best_offset(crop * 0.25 + 7, region)
    assert (place, round(correlation, 4)) == (start, 1.0)


def test_the_correlation_is_pearsons_at_the_best_place():
    rng = np.random.default_rng(0)
    crop, region = rng.random((2, 3, 5)), rng.random((4, 6, 7))
    every = {
        (z, y, x): np.corrcoef(crop.ravel(), region[z : z + 2, y : y + 3, x : x + 5].ravel())[0, 1]
        for z, y, x in np.ndindex(3, 4, 3)
    }
    place, correlation = best_offset(crop, region)
    assert place == max(every, key=every.get)
    assert correlation == pytest.approx(max(every.values()), abs=1e-5)


def test_what_is_flat_matches_nowhere():
    assert best_offset(np.full((2, 3, 3), 7), SAMPLE[:4, :9, :9])[1] == 0.0
    assert best_offset(SAMPLE[:2, :3, :3], np.full((4, 9, 9), 7))[1] == 0.0


def test_equal_values_pass_whatever_their_dtype():
    image = (SAMPLE >> 8).astype(np.uint8)
    check(image[BOX.slices].astype(np.uint16), image)


@pytest.mark.parametrize("moved", [(1, 0, 0), (-3, 7, -11), (0, -64, 64), (5, 64, -64)])
def test_a_sample_that_has_moved_is_told_by_how_much(moved):
    crop = SAMPLE[BOX.shifted(moved).slices]
    at = [list(p) for p in BOX.shifted(moved).pairs]
    with pytest.raises(UserError) as error:
        check(crop)
    assert f"in {np.count_nonzero(crop != SAMPLE[BOX.slices])} of {BOX.size} voxels" in str(error.value)
    assert f"matches best at offset {moved} (z, y, x; correlation 1.00): move its `box` to {at}" in str(error.value)
    check(crop, box=BOX.shifted(moved))


def test_a_crop_is_found_among_noise_too():
    noisy = SAMPLE + np.random.default_rng(1).normal(0, SAMPLE.std(), SHAPE)
    with pytest.raises(UserError, match=r"offset \(2, -5, 9\) \(z, y, x; correlation 0\.6"):
        check(SAMPLE[BOX.shifted((2, -5, 9)).slices], noisy)


def test_another_sample_matches_nowhere():
    with pytest.raises(
        UserError, match=r"matches nowhere within ±\(8, 64, 64\) voxels .* best correlation is 0\.[0-4]"
    ):
        check(tissue(1)[BOX.slices])


def test_changed_values_in_place_are_told_from_a_move():
    crop = SAMPLE[BOX.slices].copy()
    crop[3, 4, 5] += 1
    with pytest.raises(UserError, match=r"differs .* in 1 of 44220 voxels; it matches best at offset \(0, 0, 0\)"):
        check(crop)


def test_a_place_outside_the_sample_is_not_proposed_as_a_box(monkeypatch):
    monkeypatch.setattr(offset, "SEARCHED", (4, 16, 32))
    box, wider = Box((0, 0, 0), (4, 48, 64)), np.pad(SAMPLE, ((0, 0), (5, 0), (0, 0)), "reflect")
    with pytest.raises(UserError, match=r"offset \(2, -5, 9\) .*: there it leaves the sample; draw it again"):
        check(wider[2:6, 0:48, 9:73], box=box)


def test_only_the_part_that_differs_is_searched(monkeypatch):
    monkeypatch.setattr(offset, "COMPARED", (8, 32, 32))
    monkeypatch.setattr(offset, "SEARCHED", (8, 16, 32))
    crop = SAMPLE[BOX.slices].copy()
    moved = Box((5, 104, 80), (16, 130, 112)).shifted((2, 3, -4))
    crop[:, 34:, :32] = SAMPLE[moved.slices]  # one corner was stitched elsewhere
    with pytest.raises(UserError, match=r"offset \(2, 3, -4\) \(z, y, x; correlation 1\.00\)"):
        check(crop)


def test_the_search_is_quick_and_bounded():
    image = tissue(3, (48, 384, 384))
    began = time.perf_counter()
    place, _ = best_offset(image[6:38, 50:306, 71:327], image)
    assert place == (6, 50, 71)
    assert time.perf_counter() - began < 60


def test_the_reader_of_the_crop_tells_its_identity():
    crop = RawCrop("a.tif", Held(SAMPLE), SHAPE)
    assert replace(crop, path="b.tif").identity() == {}
