"""Pieces of planes that lie as they are in a file, whichever way they are read."""

import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neurovol.volume import planefile
from neurovol.volume.planefile import fill, passing, read_cut

PLANE = np.random.default_rng(0).integers(0, 60000, (31, 47, 3)).astype(np.uint16)  # y, x, samples together
HEAD = 13  # bytes before it; voxels need not lie on even bytes

pairs = st.tuples(*(st.tuples(st.integers(0, n), st.integers(0, n)).map(sorted) for n in PLANE.shape[:2]))


@pytest.mark.parametrize(
    ("most_read", "band_bytes"), [(6, 2**19), (6, 1), (6, 700), (0, 2**19)], ids=["band", "row", "few rows", "map"]
)
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("together", [1, 3])
@pytest.mark.parametrize("wanted", [np.uint16, np.int64])
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pair=pairs, sample=st.integers(0, 2), apart=st.booleans())
def test_any_piece_is_the_same_cut_of_the_plane(
    tmp_path, monkeypatch, most_read, band_bytes, order, together, wanted, pair, sample, apart
):
    monkeypatch.setattr(planefile, "MOST_READ", most_read)
    monkeypatch.setattr(planefile, "BAND_BYTES", band_bytes)
    plane = PLANE[:, :, :together].astype(f"{order}u2")
    (tmp_path / "f").write_bytes(b"h" * HEAD + plane.tobytes())
    rows, cols = (slice(*p) for p in pair)
    cut = plane[rows, cols, sample % together]
    out = np.full((cut.shape[0], cut.shape[1] + apart), 7, wanted)[:, : cut.shape[1]]
    with (tmp_path / "f").open("rb", buffering=0) as file:
        read_cut(file, HEAD, plane.shape, plane.dtype, (rows, cols, sample % together), out)
    np.testing.assert_array_equal(out, cut)


@pytest.mark.parametrize("cols", [slice(0, 47), slice(3, 30), slice(5, 6)], ids=["all", "most", "one"])
def test_a_file_that_ends_too_early_is_an_error(tmp_path, cols):
    (tmp_path / "f").write_bytes(PLANE[:, :, 0].tobytes()[:-1])
    out = np.empty((31, cols.stop - cols.start), np.uint16)
    with (tmp_path / "f").open("rb", buffering=0) as file, pytest.raises((EOFError, ValueError)):
        read_cut(file, 0, (31, 47, 1), PLANE.dtype, (slice(0, 31), cols, 0), out)


def test_the_error_tells_how_much_is_there(tmp_path):
    (tmp_path / "f").write_bytes(b"x" * 100)
    with (
        (tmp_path / "f").open("rb", buffering=0) as file,
        pytest.raises(EOFError, match=re.escape("only 60 of the 62 bytes at byte 40 are there")),
    ):
        fill(file, 40, np.empty(31, np.uint16))


def test_large_memory_is_not_kept(monkeypatch):
    monkeypatch.setattr(planefile, "KEPT_BYTES", 100)
    byte = np.dtype(np.uint8)
    assert np.shares_memory(passing("test", (100,), byte), passing("test", (60,), byte))
    assert not np.shares_memory(passing("test", (101,), byte), passing("test", (101,), byte))
