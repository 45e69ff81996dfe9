"""Checksums of parts give that of the whole."""

import google_crc32c
from hypothesis import given
from hypothesis import strategies as st

from neurovol.volume.crc import joined


@given(st.lists(st.binary(max_size=70), max_size=5))
def test_the_checksums_of_parts_give_that_of_the_whole(parts: list[bytes]) -> None:
    found = joined([(google_crc32c.value(part), len(part)) for part in parts])
    assert found == google_crc32c.value(b"".join(parts))


def test_large_parts_take_no_longer_than_small_ones() -> None:
    zeros = bytes(10**7)
    assert joined([(7, 3), (google_crc32c.value(zeros), 10**7)]) == google_crc32c.extend(7, zeros)
    assert joined([(7, 3), (0, 10**18)]) != joined([(7, 3), (0, 10**18 + 1)])
