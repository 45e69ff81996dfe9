"""How one TIFF file is read in parts: where each plane of each channel lies, and how to decode a piece of it.

Of compressed planes only the strips or tiles that a box needs are decoded. Those that it holds whole go straight
into their place; of the others the last decoded ones are kept, so that neighbouring blocks do not decode them again.
A FileMap holds no open handle; it is made once per process and file.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from neurovol.errors import UserError
from neurovol.geometry import Box, Zyx
from neurovol.volume.ifd import BrokenTiff, Page, read_pages
from neurovol.volume.planefile import Readable, passing, read_cut
from neurovol.volume.strips import Codec, codec_of
from neurovol.volume.tiffmeta import VoxelSize as VoxelSize
from neurovol.volume.tiffmeta import told_by

Stamp = tuple[int, int]  # size in bytes, time of last change in ns

CACHE_BYTES = 256 * 2**20  # decoded strips and tiles kept per process

# tifffile reports broken files to its log and reads on; the walk over the directories has refused them by then
logging.getLogger("tifffile").setLevel(logging.CRITICAL)


@dataclass(frozen=True, eq=False)
class FileMap:
    """Where everything lies in one file; (samples apart, y, x, samples together) is the shape of a page."""

    path: Path
    stamp: Stamp
    page_shape: tuple[int, int, int, int]
    dtype: np.dtype[Any]  # with the file's byte order
    page_of: NDArray[np.int64]  # (c, z); one channel where the samples of a page are the channels
    raw_offsets: NDArray[np.int64] | None  # per page; None where decoding is needed
    pages: tuple[Page, ...]
    segments: tuple[Box, ...]  # per strip or tile: its place in the page, as (samples apart, y, x)
    decode: Callable[..., tuple[Any, Any, Any]]
    codec: Codec | None  # the quick decoder, where it does
    voxel_size_um: VoxelSize | None
    told_planes: int | None  # channels × z by OME or ImageJ metadata, which tifffile drops where it does not fit

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(c, z, y, x)."""
        apart, y, x, together = self.page_shape
        c, z = self.page_of.shape
        return c * apart * together, z, y, x

    @property
    def grain(self) -> Zyx:
        """(z, y, x) of what is decoded at once."""
        return self.segments[0].shape if self.raw_offsets is None else (1, 1, 1)

    def read_plane(self, file: Readable, channel: int, z: int, rows_cols: tuple[slice, slice]) -> NDArray[Any]:
        """(y, x) of one channel; `file` is this file, open."""
        rows, cols = rows_cols
        out = np.empty((rows.stop - rows.start, cols.stop - cols.start), self.dtype.newbyteorder("="))
        self.read_into(file, channel, z, rows_cols, out)
        return out

    def read_into(
        self, file: Readable, channel: int, z: int, rows_cols: tuple[slice, slice], out: NDArray[Any]
    ) -> None:
        """Into `out` (y, x), which may be of a wider type and lie apart; `file` is this file, open."""
        apart, y, x, together = self.page_shape
        has_samples = apart * together > 1
        page = int(self.page_of[0 if has_samples else channel, z])
        sample = channel if has_samples else 0
        rows, cols = rows_cols
        layer, k = (sample, 0) if apart > 1 else (0, sample)
        if self.raw_offsets is not None:
            offset = int(self.raw_offsets[page]) + layer * y * x * together * self.dtype.itemsize
            read_cut(file, offset, (y, x, together), self.dtype, (rows, cols, k), out)
        else:
            box = Box((layer, rows.start, cols.start), (layer + 1, rows.stop, cols.stop))
            self._decode_into(file, page, box, k, out)

    def _decode_into(self, file: Readable, page: int, box: Box, k: int, out: NDArray[Any]) -> None:
        layer = box.start[0]
        whole = Box((layer, 0, 0), (layer + 1, *self.page_shape[1:3]))
        for index in _needed(self, box):
            segment = self.segments[index]
            part = segment.intersect(box)
            target = out[part.within(box)[1:]]
            if self.codec is None or part != segment.intersect(whole):
                target[...] = self._kept(file, page, index)[part.within(segment)][0, :, :, k]
            elif part == segment and target.dtype == self.codec.voxel and target.flags.c_contiguous:
                self._decode(file, page, index, target)
            else:
                decoded = passing("strip", segment.shape[1:], self.codec.voxel)
                self._decode(file, page, index, decoded)
                target[...] = decoded[part.within(segment)[1:]]

    def _kept(self, file: Readable, page: int, index: int) -> NDArray[Any]:
        """A strip or tile as (1, y, x, samples together), from the cache where it is there."""
        key = (self.path, self.stamp, page, index)
        found = _cache.get(key)
        if found is None:
            if self.codec is None:
                found = self._decoded_otherwise(file, page, index)
            else:
                found = np.empty((*self.segments[index].shape, 1), self.codec.voxel)
                self._decode(file, page, index, found[0, :, :, 0])
            _cache.put(key, found)
        return found

    def _decode(self, file: Readable, page: int, index: int, out: NDArray[Any]) -> None:
        """A strip or tile into `out` (y, x), C-contiguous; what the codec refuses, tifffile decodes or tells."""
        assert self.codec is not None
        try:
            self.codec.read(file, *self._extent(page, index), out)
        except MemoryError:
            raise
        except Exception:  # every codec has errors of its own
            found = self._decoded_otherwise(file, page, index)[0, :, :, 0]
            y, x = found.shape  # a tile at the edge may be stored without what lies beyond it
            out[:y, :x] = found

    def _decoded_otherwise(self, file: Readable, page: int, index: int) -> NDArray[Any]:
        """A strip or tile as (1, y, x, samples together), by tifffile."""
        offset, count = self._extent(page, index)
        file.seek(offset)
        data = file.read(count)
        if len(data) < count:
            raise EOFError(f"only {len(data)} of the {count} bytes at byte {offset} are there")
        return np.asarray(self.decode(data, index)[0])

    def _extent(self, page: int, index: int) -> tuple[int, int]:
        """Where a strip or tile begins in the file, and its size in bytes."""
        return int(self.pages[page].offsets[index]), int(self.pages[page].counts[index])


@lru_cache(maxsize=64)
def _needed(file_map: FileMap, box: Box) -> tuple[int, ...]:
    return tuple(i for i, segment in enumerate(file_map.segments) if segment.intersect(box).size)


class _SegmentCache:
    """The most recently used decoded strips and tiles of this process, bounded in bytes."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._bytes = 0
        self._held: OrderedDict[tuple[Any, ...], NDArray[Any]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[Any, ...]) -> NDArray[Any] | None:
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
            return self._held.get(key)

    def put(self, key: tuple[Any, ...], array: NDArray[Any]) -> None:
        with self._lock:
            if key in self._held or array.nbytes > self._limit:
                return
            self._held[key] = array
            self._bytes += array.nbytes
            while self._bytes > self._limit:
                self._bytes -= self._held.popitem(last=False)[1].nbytes


_cache = _SegmentCache(CACHE_BYTES)


@lru_cache(maxsize=4096)  # more than a shard is deep, a few kB each
def map_file(path: Path, stamp: Stamp) -> FileMap:
    """Read a TIFF's directories; a UserError where it is broken or not a stack of planes."""
    try:
        pages = read_pages(path)
    except BrokenTiff as error:
        raise UserError(f"{path}: not a readable TIFF: {error}; copy or export it again") from None
    try:
        with tifffile.TiffFile(path, _multifile=False) as tif:
            return _mapped(path, stamp, pages, tif)
    except (tifffile.TiffFileError, ValueError, KeyError, IndexError) as error:
        raise UserError(f"{path}: not a readable TIFF: {error}; export it again, uncompressed if need be") from None


@lru_cache(maxsize=4096)
def map_slice(path: Path, stamp: Stamp, like: FileMap) -> FileMap:
    """A slice of a folder, whose first is mapped already: where both are uncompressed only its offset is new."""
    if like.raw_offsets is not None and len(like.pages) == 1:
        try:
            pages = read_pages(path)
        except BrokenTiff as error:
            raise UserError(f"{path}: not a readable TIFF: {error}; copy or export it again") from None
        (page, *more), first = pages, like.pages[0]
        same = (page.layout, page.encoding) == (first.layout, first.encoding)
        if same and not more and page.encoding[1] == 1 and page.contiguous(int(first.counts.sum())):
            return replace(like, path=path, stamp=stamp, raw_offsets=page.offsets[:1], pages=(page,))
    return map_file(path, stamp)


def _mapped(path: Path, stamp: Stamp, pages: list[Page], tif: Any) -> FileMap:
    keyframe = tif.series[0].keyframe
    apart, depth, y, x, together = keyframe.shaped
    if depth != 1 or keyframe.dtype is None:
        raise UserError(f"{path}: pages of shape {keyframe.shape}, {keyframe.dtype}; export it as plain (y, x) pages")
    dtype = np.dtype(keyframe.dtype).newbyteorder(tif.byteorder)
    page_bytes = apart * y * x * together * dtype.itemsize
    leading, indices, data_offset = _leading(path, tif)
    page_of = _page_table(path, leading, apart * together)
    if data_offset is not None:
        raw: NDArray[np.int64] | None = data_offset + np.arange(page_of.size, dtype=np.int64) * page_bytes
        if data_offset + page_of.size * page_bytes > stamp[0]:
            raise BrokenTiff(
                f"its {page_of.size} planes end at byte {data_offset + page_of.size * page_bytes}, "
                f"the file already at {stamp[0]}: it looks truncated"
            )
    else:
        if len(indices) != page_of.size:
            raise BrokenTiff(f"its metadata tell of {page_of.size} planes, but it holds {len(indices)}")
        pages = [pages[i] for i in indices]
        if any((page.counts == 0).any() for page in pages):
            raise BrokenTiff("some of its pages have strips without data, as if writing it had been interrupted")
        plain = keyframe.is_final and all(page.contiguous(page_bytes) for page in pages)
        raw = np.array([page.offsets[0] for page in pages]) if plain else None
    decode, segments = (_no_decode, ()) if raw is not None else _decoder(keyframe, len(pages[0].offsets))
    codec = None if raw is not None else codec_of(keyframe)
    told = told_by(tif, apart * together)
    shape = (apart, y, x, together)
    return FileMap(path, stamp, shape, dtype, page_of, raw, tuple(pages), segments, decode, codec, *told)


def _no_decode(*_: Any) -> tuple[Any, Any, Any]:
    raise AssertionError("planes that are mapped are not decoded")


def _decoder(keyframe: Any, n_segments: int) -> tuple[Callable[..., tuple[Any, Any, Any]], tuple[Box, ...]]:
    """tifffile's decoder of one strip or tile, and the place of each in the page."""
    tables, header, decode = keyframe.jpegtables, keyframe.jpegheader, keyframe.decode
    boxes = []
    for i in range(n_segments):
        _, (layer, _, y, x, _), (_, length, width, _) = decode(None, i, jpegtables=tables, jpegheader=header)
        boxes.append(Box((layer, y, x), (layer + 1, y + length, x + width)))
    return (lambda data, index: decode(data, index, jpegtables=tables, jpegheader=header)), tuple(boxes)


def _leading(path: Path, tif: Any) -> tuple[list[tuple[str, int]], list[int], int | None]:
    """The axes before y and x with their lengths, the pages in that order, and where contiguous data begin."""
    series = tif.series
    first = series[0]
    if len(series) > 1:  # a file to which page after page was appended has one series per page
        kinds = {(s.kind, s.shape, str(s.dtype), s.keyframe.hash, len(s.pages)) for s in series}
        if len(kinds) > 1 or first.kind != "shaped" or len(first.pages) > 1:
            shapes = sorted({s.shape for s in series})
            raise UserError(
                f"{path}: holds {len(series)} images of shapes {shapes[:4]}; a stack has pages of one size "
                f"and kind; export the one you mean to a file of its own"
            )
        return [("Z", len(series))], [s.keyframe.index for s in series], None
    axes = zip(first.get_axes(squeeze=False), first.get_shape(squeeze=False), strict=True)
    leading = [(axis, n) for axis, n in axes if axis not in "YX" and n > 1]
    if prod(first.keyframe.shaped[0:1] + first.keyframe.shaped[4:5]) > 1:
        leading = [(axis, n) for axis, n in leading if axis != "S"]
    return leading, [page.index for page in first.pages if page is not None], first.dataoffset


def _page_table(path: Path, leading: list[tuple[str, int]], samples: int) -> NDArray[np.int64]:
    """Page index by (c, z); a UserError where it is not clear which axis is which."""
    named = "".join("Z" if axis in "ZQI" else "C" if axis in "CS" else axis for axis, _ in leading)
    axes = "".join(axis for axis, _ in leading) + "YX" + ("S" if samples > 1 else "")
    if named not in ("", "Z", "C", "ZC", "CZ") or (samples > 1 and "C" in named):
        lengths = ", ".join(f"{axis} = {n}" for axis, n in leading)
        raise UserError(
            f"{path}: its axes are {axes} ({lengths}), and which of them is z is not clear; a sample has channels, z, "
            f"y and x only. In Fiji set them by Image > Properties (slices, channels, frames = 1) and save it again"
        )
    table = np.arange(prod(n for _, n in leading), dtype=np.int64).reshape([n for _, n in leading])
    if named in ("", "Z"):
        return table.reshape(1, -1)
    return table.T if named == "ZC" else table.reshape(len(table), -1)
