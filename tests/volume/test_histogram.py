"""Exact histograms, and the constants taken from them."""

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neurovol.errors import Failure, UserError
from neurovol.geometry import Box
from neurovol.volume.compiled import library
from neurovol.volume.histogram import Counter, Histogram, Merging, load_levels, save_levels
from neurovol.volume.phantom import PhantomSource


def _volume(seed: int, dtype=np.uint16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 300 if dtype == np.uint16 else 256, (2, 5, 7, 11)).astype(dtype)


def _merged(parts: Iterable[Histogram], channels: int) -> Histogram:
    total = Merging(channels)
    for part in parts:
        total.add(part)
    return total.histogram()


def _as_lists(histogram: Histogram) -> list:
    return [(v.tolist(), n.tolist()) for v, n in zip(histogram.values, histogram.counts, strict=True)]


def test_zeros_are_left_out_and_all_else_is_counted():
    array = np.array([0, 0, 3, 65535, 3], np.uint16).reshape(1, 1, 1, 5)
    assert _as_lists(Histogram.of(array)) == [([3, 65535], [2, 1])]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=1, max_size=4), st.sampled_from([np.uint8, np.uint16]))
def test_merged_blocks_equal_the_whole(seeds, dtype):
    volumes = [_volume(seed, dtype) for seed in seeds]
    total = _merged((Histogram.of(volume) for volume in volumes), 2)
    assert _as_lists(total) == _as_lists(Histogram.of(np.concatenate(volumes, axis=1)))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 255), min_size=1, max_size=50), st.integers(0, 1000))
def test_a_percentile_is_the_smallest_value_that_reaches_the_share(values, tenths):
    array = np.array(values, np.uint8).reshape(1, 1, 1, -1)
    (found,) = Histogram.of(array).percentile(tenths / 10)
    reached = [v for v in sorted(values) if sum(w <= v for w in values) * 1000 >= tenths * len(values)]
    assert found == reached[0]


def test_the_constants_are_the_1st_and_998th_per_mille():
    array = np.stack([np.arange(1, 1001), np.arange(1001, 2001)]).astype(np.uint16).reshape(2, 10, 10, 10)
    assert Histogram.of(array).constants() == ((10, 1010), (998, 1998))


def test_an_empty_channel_is_named():
    array = _volume(0)
    array[1] = 0
    with pytest.raises(UserError, match="channel 1 of the sample is zero everywhere"):
        Histogram.of(array).constants()


def test_what_is_saved_is_loaded_and_equal_histograms_give_equal_bytes(tmp_path):
    histogram = Histogram.of(_volume(1))
    histogram.save(tmp_path / "a.npz")
    histogram.save(tmp_path / "b.npz")
    assert _as_lists(Histogram.load(tmp_path / "a.npz")) == _as_lists(histogram)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npz", "b.npz"]


def test_a_damaged_or_missing_file_is_a_failure(tmp_path):
    Histogram.of(_volume(1)).save(tmp_path / "a.npz")
    content = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(content[: len(content) // 2])
    for name in ("a.npz", "nothing.npz"):
        with pytest.raises(Failure, match=f"{name}: the histogram could not be read"):
            Histogram.load(tmp_path / name)


def test_other_types_and_channel_counts_are_refused():
    with pytest.raises(ValueError, match="float64"):
        Histogram.of(np.zeros((1, 2, 2, 2)))
    with pytest.raises(ValueError, match="of 2 channels cannot be merged with ones of 1"):
        _merged([Histogram.of(_volume(1))], 1)


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 11), st.integers(0, 9))
def test_of_a_large_volume_every_fourth_row_is_counted_however_it_is_cut(ny: int, nz: int, cut: int, seed: int) -> None:
    volume = np.random.default_rng(seed).integers(0, 300, (1, nz, ny, 5)).astype(np.uint16)
    z, y = np.indices((nz, ny))
    wanted = Histogram.of(volume[:, (z + y) % 4 == 0])
    counter = Counter(1, volume.dtype, every=4)
    for a in range(0, nz, cut):
        for b in range(0, ny, cut):
            counter.add(volume[:, a : a + cut, b : b + cut], (a, b, 0))
    found = counter.histogram()
    np.testing.assert_array_equal(found.values[0], wanted.values[0])
    np.testing.assert_array_equal(found.counts[0], wanted.counts[0])


@pytest.mark.skipif(library() is None, reason="neurovol was installed without a C compiler")
@settings(max_examples=100, deadline=None)
@given(
    st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 40)),
    st.sampled_from([1, 2, 4, 16]),
    st.integers(0, 40),
    st.sampled_from([np.uint8, np.uint16]),
    st.integers(0, 99),
)
def test_compiled_counts_are_those_of_numpy(shape, every, first, dtype, seed) -> None:
    """Of parts of larger arrays."""
    held = np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, (2, *shape), endpoint=True).astype(dtype)
    part = held[:, :, shape[1] // 3 :, shape[2] // 2 :]
    widths = [part.shape[3] // 3, 0, part.shape[3] - part.shape[3] // 3]  # blocks side by side
    compiled, by_numpy = Counter(2, part.dtype, every, blocks=3), Counter(2, part.dtype, every, blocks=3)
    assert compiled._add_compiled(part, first, widths)
    for k, block in enumerate(np.split(part, np.cumsum(widths)[:-1], axis=3)):
        by_numpy._add_by_numpy(by_numpy.counts[:, k], block, first)
    np.testing.assert_array_equal(compiled.counts, by_numpy.counts)
    assert not compiled._add_compiled(held[..., ::2], first, widths)  # rows of every other voxel
    assert not compiled._add_compiled(part.astype(part.dtype.newbyteorder()), first, widths) or dtype == np.uint8


def test_a_quarter_of_a_large_volume_gives_the_percentiles_of_all_of_it() -> None:
    volume = PhantomSource((16, 512, 512), seed=3).read(Box((0, 0, 0), (16, 512, 512)))
    counter = Counter(1, volume.dtype, every=4)
    counter.add(volume)
    for q in (1, 50, 99.8):
        (whole,), (quarter,) = Histogram.of(volume).percentile(q), counter.histogram().percentile(q)
        assert abs(quarter / whole - 1) < 0.01, f"percentile {q}: {quarter} of a quarter, {whole} of all"


def test_the_histograms_of_all_levels_come_back_from_one_file(tmp_path) -> None:
    levels = [Histogram.of(np.full((2, 3, 4, 5), n + 1, np.uint16)) for n in range(3)]
    save_levels(levels, tmp_path / "h.npz")
    for found, wanted in zip(load_levels(tmp_path / "h.npz"), levels, strict=True):
        assert [v.tolist() for v in found.values] == [v.tolist() for v in wanted.values]
        assert [n.tolist() for n in found.counts] == [n.tolist() for n in wanted.counts]
    assert Histogram.load(tmp_path / "h.npz").percentile(50) == (1, 1)
