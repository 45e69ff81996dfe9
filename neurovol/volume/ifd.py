"""Where the data of a TIFF's pages lies: a light walk over its image file directories (TIFF 6.0, BigTIFF).

tifffile reads a truncated file as a shorter one. This walk notices, and it is quick enough for a
folder of thousands of slices: one small read per page, no pixel is touched.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

_ITEM_SIZE = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_INTEGER = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
_WIDTH, _LENGTH, _BITS, _SAMPLES, _PLANAR, _FORMAT = 256, 257, 258, 277, 284, 339
_OFFSETS, _COUNTS = (273, 324), (279, 325)  # of strips, of tiles
_COMPRESSION = 259
_WANTED = {_COMPRESSION, _WIDTH, _LENGTH, _BITS, _SAMPLES, _PLANAR, _FORMAT, *_OFFSETS, *_COUNTS}


class BrokenTiff(ValueError):
    """Not a TIFF, or one whose directories or data reach beyond the file's end; the text says which."""


@dataclass(frozen=True)
class Page:
    """One image of a TIFF: its layout, and where its strips or tiles lie in the file."""

    layout: tuple[int, ...]  # length, width, samples, bits, sample format, planar configuration
    offsets: NDArray[np.int64]
    counts: NDArray[np.int64]
    encoding: tuple[str, int]  # byte order, compression (1: none)

    def contiguous(self, page_bytes: int) -> bool:
        """True if the data lies in one piece of that many bytes (whether compressed is another matter)."""
        ends = self.offsets + self.counts
        return bool(ends[-1] - self.offsets[0] == page_bytes and np.array_equal(ends[:-1], self.offsets[1:]))


def read_pages(path: Path) -> list[Page]:
    """All pages of the main chain of directories; BrokenTiff if anything lies beyond the file's end."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        order, big, offset = _start(file, size)
        pages: list[Page] = []
        seen: set[int] = set()
        while offset:
            if offset in seen:
                raise BrokenTiff(f"its directory of page {len(pages)} points back to an earlier one")
            seen.add(offset)
            try:
                tags, following = _directory(file, size, order, big, offset)
                page = _page(tags, order)
            except (struct.error, KeyError, IndexError):
                raise BrokenTiff(
                    f"the directory of page {len(pages)} should lie at byte {offset}, but is not all there: "
                    f"the file has {size} bytes and looks truncated"
                ) from None
            end = int((page.offsets + page.counts).max())
            if end > size:
                raise BrokenTiff(
                    f"the data of page {len(pages)} ends at byte {end}, the file already at {size}: it looks truncated"
                )
            pages.append(page)
            offset = following
    if not pages:
        raise BrokenTiff("it holds no page")
    return pages


def _start(file: BinaryIO, size: int) -> tuple[str, bool, int]:
    """Byte order, whether a BigTIFF, and the offset of the first directory."""
    head = file.read(16)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None:
        raise BrokenTiff(f"it begins with {head[:4]!r}, a TIFF with b'II' or b'MM'")
    try:
        (magic,) = struct.unpack_from(order + "H", head, 2)
        if magic not in (42, 43):
            raise BrokenTiff(f"its header has the number {magic}; 42 is a TIFF, 43 a BigTIFF")
        big = magic == 43
        (first,) = struct.unpack_from(order + ("Q" if big else "I"), head, 8 if big else 4)
    except struct.error:
        raise BrokenTiff(f"the file has {size} bytes, less than a header: it looks truncated") from None
    return order, big, first


def _directory(file: BinaryIO, size: int, order: str, big: bool, offset: int) -> tuple[dict[int, tuple[int, ...]], int]:
    """The wanted tags of one directory, and the offset of the next."""
    count_code, entry_code, offset_code = ("Q", "HHQ8s", "Q") if big else ("H", "HHI4s", "I")
    file.seek(offset)
    (n,) = struct.unpack(order + count_code, file.read(struct.calcsize(order + count_code)))
    entry = struct.Struct(order + entry_code)
    raw = file.read(min(n, 1 << 16) * entry.size)
    (following,) = struct.unpack(order + offset_code, file.read(struct.calcsize(order + offset_code)))
    tags = {}
    for tag, kind, count, inline in entry.iter_unpack(raw):
        n_bytes = count * _ITEM_SIZE.get(kind, 0)
        if n_bytes > len(inline):
            (place,) = struct.unpack(order + offset_code, inline)
            if place + n_bytes > size:  # also of tags not wanted here: OME metadata lie at the file's end
                raise struct.error(f"tag {tag} lies beyond the end")
            if tag in _WANTED:
                file.seek(place)
                inline = file.read(n_bytes)
        if tag in _WANTED and kind in _INTEGER:
            tags[tag] = struct.unpack(f"{order}{count}{_INTEGER[kind]}", inline[:n_bytes])
    return tags, following


def _page(tags: dict[int, tuple[int, ...]], order: str) -> Page:
    offsets = next(tags[t] for t in _OFFSETS if t in tags) if tags.keys() & set(_OFFSETS) else ()
    counts = next((tags[t] for t in _COUNTS if t in tags), (0,) * len(offsets))
    layout = (
        tags[_LENGTH][0],
        tags[_WIDTH][0],
        tags.get(_SAMPLES, (1,))[0],
        tags.get(_BITS, (1,))[0],
        tags.get(_FORMAT, (1,))[0],
        tags.get(_PLANAR, (1,))[0],
    )
    if not offsets or len(offsets) != len(counts):
        raise KeyError("offsets")
    encoding = (order, tags.get(_COMPRESSION, (1,))[0])
    return Page(layout, np.array(offsets, np.int64), np.array(counts, np.int64), encoding)
