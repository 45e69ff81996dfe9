"""The crc32c of bytes that lie one after the other, from the crc32c of each."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

_POLYNOMIAL = 0x82F63B78  # Castagnoli's, lowest bit first, as RFC 3720 has it


def joined(parts: Iterable[tuple[int, int]]) -> int:
    """The crc32c of the parts' bytes in a row; each part is its own crc32c and its number of bytes.

    Zeros behind a message multiply its remainder by x^8 each, and remainders add up (as in zlib's crc32_combine).

    >>> import google_crc32c
    >>> joined([(google_crc32c.value(b"neu"), 3), (google_crc32c.value(b"ron"), 3)]) == google_crc32c.value(b"neuron")
    True
    """
    total = 0
    for crc, size in parts:
        total = _times(total, _power(8 * size)) ^ crc
    return total


def _times(a: int, b: int) -> int:
    """The product of two polynomials modulo Castagnoli's; the highest bit is the coefficient of 1."""
    product = 0
    while b:
        if b & 0x80000000:
            product ^= a
        a = (a >> 1) ^ (_POLYNOMIAL if a & 1 else 0)
        b = (b << 1) & 0xFFFFFFFF
    return product


@lru_cache(maxsize=64)
def _power(n: int) -> int:
    """x^n modulo Castagnoli's polynomial."""
    result, square = 0x80000000, 0x40000000  # 1 and x
    while n:
        if n & 1:
            result = _times(result, square)
        square = _times(square, square)
        n >>= 1
    return result
