"""Arrays that are noted come back, or an error says of which file they do not."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from neurovol.errors import Failure
from neurovol.volume.notes import read_note, write_note

anything = arrays(st.sampled_from([np.uint8, np.uint16, np.int64]), array_shapes(min_dims=0, max_dims=4, min_side=0))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.dictionaries(st.text(max_size=5), anything, max_size=4))
def test_what_is_noted_comes_back(tmp_path: Path, noted: dict[str, np.ndarray]) -> None:
    write_note(tmp_path, 7, noted)
    found = read_note(tmp_path, 7)
    assert list(found) == list(noted)
    for name, array in noted.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(found[name], array)
    assert [file.name for file in tmp_path.iterdir()] == ["7.note"]


def test_parts_of_larger_arrays_are_noted_too(tmp_path: Path) -> None:
    whole = np.arange(60).reshape(3, 4, 5)
    write_note(tmp_path, 0, {"part": whole[:, ::2, 1:]})
    np.testing.assert_array_equal(read_note(tmp_path, 0)["part"], whole[:, ::2, 1:])


@pytest.mark.parametrize("content", [None, b"", b"[[", b'[["a", "<u2", [3]]]\n12345', b'[["a", "<u2", [1]]]\n123'])
def test_a_note_that_is_missing_or_damaged_is_named(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "3.note").write_bytes(content)
    with pytest.raises(Failure, match=r"3\.note: could not be read: .*--redo"):
        read_note(tmp_path, 3)


def test_notes_of_a_conversion_that_an_earlier_version_began_are_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "5.npz", values_0=np.arange(3))
    np.testing.assert_array_equal(read_note(tmp_path, 5)["values_0"], np.arange(3))
