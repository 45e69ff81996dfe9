"""Checksums of parts give that of the whole."""

import google_crc32c
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from neurovol.volume.crc import extended, extended_columns, joined


@given(st.lists(st.binary(max_size=70), max_size=5))
def test_the_checksums_of_parts_give_that_of_the_whole(parts: list[bytes]) -> None:
    found = joined([(google_crc32c.value(part), len(part)) for part in parts])
    assert found == google_crc32c.value(b"".join(parts))


def test_large_parts_take_no_longer_than_small_ones() -> None:
    zeros = bytes(10**7)
    assert joined([(7, 3), (google_crc32c.value(zeros), 10**7)]) == google_crc32c.extend(7, zeros)
    assert joined([(7, 3), (0, 10**18)]) != joined([(7, 3), (0, 10**18 + 1)])


@settings(max_examples=200, deadline=None)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 11), st.integers(1, 300) | st.sampled_from([128, 256, 384, 512])),
    st.integers(0, 2),
    st.integers(0, 2**32 - 1),
    st.sampled_from([np.uint8, np.uint16]),
)
def test_rows_that_lie_apart_are_summed_as_if_they_did_not(shape, margin, before, dtype):
    held = np.random.default_rng(before).integers(0, 255, [n + margin for n in shape]).astype(dtype)
    part = held[margin:, margin:, margin:]
    assert extended(before, part) == google_crc32c.extend(before, part.tobytes())
    crcs, left = [before, 5, 0], shape[2] // 2
    extended_columns(crcs, part, [left, 0, shape[2] - left])
    assert crcs == [
        google_crc32c.extend(before, part[..., :left].tobytes()), 5, google_crc32c.value(part[..., left:].tobytes()),
    ]  # fmt: skip
    assert extended(before, held[:, :, ::2]) == google_crc32c.extend(before, held[:, :, ::2].tobytes())
