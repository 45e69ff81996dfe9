"""Whether the names of slices count through: what is accepted, and what is found."""

import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from neurovol.errors import UserError
from neurovol.volume.numbering import check_numbering, numbering_problem, steps
from neurovol.volume.tiff import natural_key

firsts = st.integers(0, 300)
widths = st.integers(1, 6)
patterns = st.sampled_from(["{}.tif", "s{}.tif", "brain 2_z{}_ch1.TIFF", "x0123_y04_z{}.tif", "10x_{}.ome.tif"])


def listed(names: list[str]) -> list[str]:
    """As the folder's listing sorts them."""
    return sorted(names, key=lambda name: (natural_key(name), name))


def named(pattern: str, numbers: list[int], width: int = 1) -> list[str]:
    return [pattern.format(f"{n:0{width}}") for n in numbers]


def problem(*names: str) -> str:
    found = numbering_problem(listed(list(names)))
    assert found is not None
    return found


def is_a_stack(*names: str) -> bool:
    return numbering_problem(listed(list(names))) is None


@given(patterns, firsts, widths, st.integers(1, 90), st.integers(1, 25), st.randoms())
def test_any_first_number_padding_and_constant_step_is_a_stack(pattern, first, width, n, step, random):
    names = named(pattern, list(range(first, first + n * step, step)), width)
    random.shuffle(names)
    assert is_a_stack(*names)


@given(patterns, firsts, widths, st.integers(3, 60), st.randoms(), st.data())
def test_whatever_is_missing_but_at_the_ends_is_found(pattern, first, width, n, random, data):
    everything = list(range(first, first + n))
    gone = data.draw(st.sets(st.sampled_from(everything[1:-1]), min_size=1))
    left = [i for i in everything if i not in gone]
    assume(len(set(steps(left))) > 1)  # every second slice, say, is a step of two
    names = named(pattern, left, width)
    random.shuffle(names)
    found = problem(*names)
    told, _, _ = found.partition(" between ")
    assert set(map(int, re.findall(r"\d+", told))) <= gone
    before = next(a for a, b in pairwise(left) if b - a > 1)
    if len(gone) * 2 < n:  # otherwise the step may be larger than 1
        after = left[left.index(before) + 1]
        a, b = named(pattern, [before, after], width)
        assert f" {before + 1}" in found.split(",")[0]
        assert f"between {a} and {b}" in found
        assert after - before - 1 == len(gone) or f"({len(gone)} are missing in all)" in found


@given(patterns, firsts, st.integers(1, 40), st.data())
def test_a_number_that_is_there_twice_is_found(pattern, first, n, data):
    names = named(pattern, list(range(first, first + n)), 4)
    twice = data.draw(st.integers(first, first + n - 1))
    other = pattern.format(f"{twice:05}")
    found = problem(*names, other)
    assert other in found
    assert pattern.format(f"{twice:04}") in found
    assert "have the same number" in found


def test_what_a_message_says(tmp_path):
    names = listed(named("s{:}.tif", [1, 2, 9, 10, 12]))
    with pytest.raises(UserError) as caught:
        check_numbering(tmp_path / "raw", names)
    assert str(caught.value) == (
        f"{tmp_path / 'raw'}: slices 3, 4, 5, 6, 7, … are missing, between s2.tif and s9.tif (7 are missing in all); "
        f"copy the missing files, or, if these slices were never imaged, put black ones of the same size in their "
        f"place, or number the files without a gap"
    )


def test_a_gap_in_larger_steps_is_named_in_those():
    assert problem(*named("{}.tif", [0, 10, 20, 50, 60], 6)).startswith(
        "slices 30, 40 are missing, between 000020.tif and 000050.tif; copy"
    )


@pytest.mark.parametrize(
    "names", [("s1.tif", "s01.tif"), ("s1.tif", "s1.tiff"), ("s1.tif", "S1.TIF"), ("mip.tif", "MIP.tiff")]
)
def test_padding_case_and_extension_make_no_other_slice(names):
    found = problem(*names, "s2.tif", "s3.tif")
    assert all(name in found for name in names)
    assert "one slice is there twice" in found


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (
            ("a_001.tif", "a_002.tif", "b_001.tif"),
            "2 series: a_001.tif (2 files named a_*), b_001.tif (1 file named b_*); give a folder with one stack",
        ),
        (("a_001.tif", "b_002.tif"), "a_001.tif (1 file named a_*), b_002.tif (1 file named b_*)"),
        (("z001_DAPI.tif", "z001_GFP.tif", "z002_DAPI.tif"), "z001_DAPI.tif (2 files named z*_dapi), z001_GFP.tif"),
        (("s1.tif", "s2.tif", "s3.tif", "MIP.tif"), "MIP.tif (1 file named mip), s1.tif (3 files named s*)"),
        (("s1.tif", "s1 (1).tif", "s2.tif"), "s1 (1).tif (1 file named s* (*)), s1.tif (2 files named s*)"),
        (tuple(f"{c}1.tif" for c in "abcdefg"), "7 series: a1.tif (1 file named a*), b1.tif"),
    ],
)
def test_several_series_are_named(names, said):
    found = problem(*names)
    assert said in found
    assert ("and 2 more;" in found) == (len(names) == 7)


@pytest.mark.parametrize(
    "names",
    [
        [f"brain_c{c}_z{z:03}.tif" for c in range(2) for z in range(9)],
        [f"z{z}_c{c}.tif" for c in range(2) for z in range(9)],
        [f"r{y}_c{x}.tif" for y in range(3) for x in range(4)],
        [f"c{c}_z{z}.tif" for c in range(3) for z in range(9)][:-2],
        [f"z{z / 2}.tif" for z in range(9)],
    ],
)
def test_names_that_count_by_two_numbers_at_once_are_several_series(names):
    assert "count by 2 numbers at once" in problem(*names)


def test_the_grid_of_names_is_described():
    names = [f"c{c}_z{z:03}.tif" for c in range(2) for z in range(1, 10)]
    assert "at once, 2 (0 to 1) × 9 (1 to 9), so no number tells which slice is which; give a folder" in problem(*names)


CLOCK = [142233, 142239, 142246, 142301, 142307, 142315]


def test_z_beside_clock_times_is_what_counts():
    assert is_a_stack(*(f"scan_{t}_z{z}.tif" for z, t in enumerate(CLOCK)))
    assert is_a_stack(*(f"z{z:03}_{t}.tif" for z, t in enumerate(CLOCK)))
    names = [f"scan_{t}_z{z}.tif" for z, t in enumerate(CLOCK)]
    assert "slice 2 is missing, between scan_142239_z1.tif and scan_142301_z3.tif" in problem(*names[:2], *names[3:])


def test_stage_positions_beside_a_counter_make_no_gap():
    positions = [0, 10, 20, 50, 60]
    assert is_a_stack(*(f"frame{i}_z{z:04}.tif" for i, z in enumerate(positions)))
    assert is_a_stack(*(f"z{z:04}_frame{i}.tif" for i, z in enumerate(positions)))


def test_a_slice_that_two_counters_lack_is_missing():
    assert "slice 3 is missing" in problem(*(f"{i:04}_z{i}.tif" for i in range(9) if i != 3))


def test_of_clock_times_alone_no_gap_is_claimed():
    assert is_a_stack(*(f"scan_{t}.tif" for t in CLOCK))
    assert is_a_stack(*(f"scan_{t // 10000}.{t // 100 % 100}.{t % 100:02}.tif" for t in CLOCK))


def test_an_order_of_names_that_contradicts_the_slices_numbers_is_refused():
    found = problem(*(f"x{x}_z{z}.tif" for z, x in enumerate([7, 5, 6, 9])))
    assert "x5_z1.tif comes before" not in found
    assert "x6_z2.tif comes before x7_z0.tif, though its slice number 2 is larger than 0; rename" in found


@pytest.mark.parametrize(
    "names",
    [
        ("a.tif",),
        ("s7.tif",),
        ("first.tif", "second.tif", "third.tif"),  # alphabetical
        ("s001_a3f.tif", "s002_b71.tif", "s003_93c.tif"),  # what follows the number is no number
        ("1_left.tif", "2_right.tif"),
        ("s9.TIF", "s10.tiff", "S11.tif"),
        ("s3.tif", "s40.tif"),  # two slices are always a constant step
    ],
)
def test_what_else_is_a_stack(names):
    assert is_a_stack(*names)


def test_a_hundred_thousand_names_take_no_time():
    names = [f"s{i:06}.tif" for i in range(100_000) if i != 77_777]
    assert numbering_problem(names).startswith("slice 77777 is missing")


def test_the_folder_is_named_first():
    check_numbering(Path("raw"), ["1.tif", "2.tif"])
    with pytest.raises(UserError, match=r"^raw/b: slice 2 is missing"):
        check_numbering(Path("raw/b"), ["1.tif", "3.tif", "4.tif"])
