"""How a piece is cut out of a plane that lies uncompressed in a file, row after row.

Reading whole rows, and cutting the wanted columns in the processor's cache, costs less than mapping the file as long
as most of a row is wanted: each map has its page faults, each read copies what is not needed.
"""

from __future__ import annotations

import io
import mmap
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurovol.volume.workspace import reused

Readable = io.FileIO | io.BufferedReader

MOST_READ = 6  # times the wanted bytes; beyond that mapping was quicker (ext4, page cache warm, rows of 3 to 40 kB)
BAND_BYTES = 2**19  # rows read at once: more of them leave the cache before they are cut
KEPT_BYTES = 2**25  # beyond it, memory is given back: what fresh memory costs is little beside decoding into it


def passing(name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """An array that is done with before this thread asks for that name again; of any content."""
    if prod(shape) * dtype.itemsize > KEPT_BYTES:
        return np.empty(shape, dtype)
    return reused(name, shape, dtype)


def fill(file: Readable, offset: int, target: NDArray[Any]) -> None:
    """The bytes of a file from an offset on, as many as `target` (C-contiguous) holds; EOFError if it ends before."""
    view = target.data.cast("B") if target.size else memoryview(b"")
    file.seek(offset)
    done = 0
    while done < len(view):  # Linux reads 2 GiB at most at once
        n = file.readinto(view[done:])
        if not n:
            raise EOFError(f"only {done} of the {len(view)} bytes at byte {offset} are there")
        done += n


def read_cut(
    file: Readable, offset: int, layout: tuple[int, int, int], dtype: np.dtype[Any], cut: tuple[slice, slice, int],
    out: NDArray[Any],
) -> None:  # fmt: skip
    """The rows, columns and one sample of a plane into `out` (y, x) of any type.

    `layout` is (y, x, samples together) of the plane, which begins at `offset`; `dtype` has the file's byte order.
    """
    if not out.size:
        return
    rows, cols, sample = cut
    _, x, together = layout
    n_rows = rows.stop - rows.start
    row_bytes = x * together * dtype.itemsize
    start = offset + rows.start * row_bytes
    if out.dtype == dtype and out.flags.c_contiguous and (cols.stop - cols.start) == x and together == 1:
        fill(file, start, out)
    elif n_rows * row_bytes <= MOST_READ * out.size * dtype.itemsize:
        in_band = -(-n_rows // -(-n_rows * row_bytes // BAND_BYTES))
        band = passing("band", (in_band, x, together), dtype)
        for first in range(0, n_rows, in_band):
            part = band[: n_rows - first]
            fill(file, start + first * row_bytes, part)
            out[first : first + in_band] = part[:, cols, sample]
    else:
        out[...] = _mapped(file, start, (n_rows, x, together), dtype)[:, cols, sample]


def _mapped(file: Readable, offset: int, layout: tuple[int, int, int], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Rows in the file's own memory map, as numpy.memmap would give them, in a third of the time."""
    start = offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    n = prod(layout)
    held = mmap.mmap(file.fileno(), offset - start + n * dtype.itemsize, access=mmap.ACCESS_READ, offset=start)
    return np.frombuffer(held, dtype, n, offset - start).reshape(layout)
