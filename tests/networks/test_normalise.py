import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neurovol.errors import UserError
from neurovol.networks.normalise import CLIP, Normalisation


def test_the_percentiles_become_0_and_1():
    n = Normalisation(low=(100.0, 10.0), high=(300.0, 20.0))
    raw = np.array([100, 300, 10, 20], np.uint16).reshape(2, 1, 1, 2)
    result = n.apply(raw)
    assert result.dtype == np.float32
    assert result.ravel().tolist() == [0, 1, 0, 1]


def test_values_far_outside_are_clipped():
    n = Normalisation(low=(1000.0,), high=(1100.0,))
    raw = np.array([0, 65535], np.uint16).reshape(1, 1, 1, 2)
    assert n.apply(raw).ravel().tolist() == list(CLIP)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 12), st.integers(1, 12), st.sampled_from([np.uint8, np.uint16, np.int16]))
def test_a_part_is_normalised_as_in_the_whole(start, length, dtype):
    raw = np.random.default_rng(1).integers(0, 120, (1, 3, 5, 13)).astype(dtype)
    n = Normalisation(low=(3.0,), high=(90.0,))
    part = (..., slice(start, start + length))
    np.testing.assert_array_equal(n.apply(raw)[part], n.apply(raw[part]))


@pytest.mark.parametrize(("low", "high"), [(7.0, 7.0), (9.0, 7.0), (float("nan"), 7.0), (0.0, float("inf"))])
def test_a_constant_channel_is_refused(low, high):
    with pytest.raises(UserError, match=r"channel 1.*constant or empty"):
        Normalisation(low=(0.0, low), high=(1.0, high))


def test_one_low_and_one_high_per_channel():
    with pytest.raises(UserError, match="2 low and 1 high"):
        Normalisation(low=(0.0, 1.0), high=(2.0,))


def test_an_unknown_rule_is_refused():
    with pytest.raises(UserError, match="minmax"):
        Normalisation(low=(0.0,), high=(2.0,), rule="minmax")


def test_json_and_back():
    n = Normalisation(low=(0.5,), high=(2.0,))
    assert Normalisation.from_json(n.to_json()) == n
