"""How one TIFF file is read in parts: where each plane of each channel lies, and how to decode a piece of it.

Uncompressed planes are memory-mapped; of compressed ones only the strips or tiles that a box needs
are decoded, and the last decoded ones are kept, so that neighbouring blocks do not decode them again.
A FileMap holds no open handle; it is made once per process and file.
"""

from __future__ import annotations

import logging
import mmap
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any, BinaryIO
from xml.etree import ElementTree

import numpy as np
import tifffile
from numpy.typing import NDArray

from neurovol.errors import UserError
from neurovol.geometry import Box, Zyx
from neurovol.volume.ifd import BrokenTiff, Page, read_pages

Stamp = tuple[int, int]  # size in bytes, time of last change in ns
VoxelSize = tuple[float, float, float]

CACHE_BYTES = 256 * 2**20  # decoded strips and tiles kept per process

_MICROMETRES = {
    "µm": 1.0, "μm": 1.0, "um": 1.0, "\\u00B5m": 1.0, "micron": 1.0, "microns": 1.0, "micrometer": 1.0,
    "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6, "inch": 25400.0, "in": 25400.0,
}  # fmt: skip

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

    def read_plane(self, file: BinaryIO, channel: int, z: int, rows_cols: tuple[slice, slice]) -> NDArray[Any]:
        """(y, x) of one channel; `file` is this file, open."""
        apart, _, _, together = self.page_shape
        has_samples = apart * together > 1
        page = int(self.page_of[0 if has_samples else channel, z])
        sample = channel if has_samples else 0
        rows, cols = rows_cols
        layer, k = (sample, 0) if apart > 1 else (0, sample)
        box = Box((layer, rows.start, cols.start), (layer + 1, rows.stop, cols.stop))
        if self.raw_offsets is not None:
            return self._mapped(file, int(self.raw_offsets[page]))[box.slices][0, :, :, k]
        return self._decoded(file, page, box)[0, :, :, k]

    def _mapped(self, file: BinaryIO, offset: int) -> NDArray[Any]:
        """A page in the file's own memory map, as numpy.memmap would give it, in a third of the time."""
        start = offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        n_bytes = prod(self.page_shape) * self.dtype.itemsize
        held = mmap.mmap(file.fileno(), offset - start + n_bytes, access=mmap.ACCESS_READ, offset=start)
        return np.frombuffer(held, self.dtype, prod(self.page_shape), offset - start).reshape(self.page_shape)

    def _decoded(self, file: BinaryIO, page: int, box: Box) -> NDArray[Any]:
        needed = _needed(self, box)
        if len(needed) == 1 and self.segments[needed[0]] == box:  # a whole slice may be most of a gigabyte
            return self._segment(file, page, needed[0])
        out = np.empty((*box.shape, self.page_shape[3]), self.dtype.newbyteorder("="))
        for index in needed:
            segment = self.segments[index]
            part = segment.intersect(box)
            out[part.within(box)] = self._segment(file, page, index)[part.within(segment)]
        return out

    def _segment(self, file: BinaryIO, page: int, index: int) -> NDArray[Any]:
        key = (self.path, self.stamp, page, index)
        found = _cache.get(key)
        if found is None:
            offset, count = int(self.pages[page].offsets[index]), int(self.pages[page].counts[index])
            file.seek(offset)
            data = file.read(count)
            if len(data) < count:
                raise EOFError(f"only {len(data)} of the {count} bytes at byte {offset} are there")
            found = np.asarray(self.decode(data, index)[0])
            _cache.put(key, found)
        return found


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
    shape = (apart, y, x, together)
    voxel_size_um, told = _metadata(tif, apart * together)
    return FileMap(path, stamp, shape, dtype, page_of, raw, tuple(pages), segments, decode, voxel_size_um, told)


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


def _metadata(tif: Any, samples: int) -> tuple[VoxelSize | None, int | None]:
    """By OME or ImageJ metadata: (z, y, x) in µm, None unless all three are told; the number of planes."""
    if tif.is_ome:
        return _ome_metadata(tif.ome_metadata)
    if tif.is_imagej:
        told = tif.imagej_metadata or {}
        planes = int(told["images"]) * samples if "images" in told else None
        return _imagej_voxel_size(told, tif.pages[0].tags), planes
    return None, None


def _ome_metadata(xml: str) -> tuple[VoxelSize | None, int | None]:
    try:
        pixels = next((e for e in ElementTree.fromstring(xml).iter() if e.tag.endswith("}Pixels")), None)
    except ElementTree.ParseError:
        return None, None
    if pixels is None:
        return None, None
    planes = prod(int(pixels.get(f"Size{axis}", "1")) for axis in "CZT")
    sizes = []
    for axis in "ZYX":
        value = pixels.get(f"PhysicalSize{axis}")
        unit = pixels.get(f"PhysicalSize{axis}Unit", "µm")
        if value is None or unit not in _MICROMETRES:
            return None, planes
        sizes.append(float(value) * _MICROMETRES[unit])
    return _positive(sizes), planes


def _imagej_voxel_size(metadata: dict[str, Any], tags: Any) -> VoxelSize | None:
    """ImageJ tells pixels per unit in the resolution tags, the plane spacing in its own metadata."""
    factor = _MICROMETRES.get(str(metadata.get("unit", "")))
    if factor is None or "spacing" not in metadata or "XResolution" not in tags or "YResolution" not in tags:
        return None
    per_unit = [tags[name].value for name in ("YResolution", "XResolution")]
    if any(n == 0 or d == 0 for n, d in per_unit):
        return None
    return _positive([abs(float(metadata["spacing"])) * factor, *(d / n * factor for n, d in per_unit)])


def _positive(sizes: list[float]) -> VoxelSize | None:
    z, y, x = sizes
    return (z, y, x) if all(0 < s < float("inf") for s in sizes) else None
