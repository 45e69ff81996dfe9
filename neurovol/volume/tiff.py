"""A sample as TIFF: one single- or multi-page file, or a folder with one TIFF per z-slice."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurovol.errors import Failure, UserError
from neurovol.geometry import Box, Zyx
from neurovol.volume.ifd import BrokenTiff, read_pages
from neurovol.volume.numbering import check_numbering
from neurovol.volume.tiffmap import FileMap, Stamp, VoxelSize, map_file, map_slice

MOST_CHANNELS = 8  # more of them on a single plane are z-slices saved under the wrong name
Listed = tuple[str, int, int]  # name, size in bytes, time of last change in ns


@dataclass(frozen=True)
class TiffSource:
    """A TIFF stack; (c, z, y, x), uint8 or uint16. It holds no list of files: workers list the folder themselves."""

    path: str
    is_folder: bool
    shape: tuple[int, int, int, int]
    dtype: np.dtype[Any]
    voxel_size_um: VoxelSize | None
    listing_sha256: str  # of names, sizes and times, so that a source that changes under way is noticed
    grain: Zyx  # what has to be decoded at once: (1, 1, 1) where nothing is compressed, else a strip or tile

    def read(self, box: Box, channels: tuple[int, ...], out: NDArray[Any] | None = None) -> NDArray[Any]:
        """(c, z, y, x) of a box inside the stack; Failure names the file and z that could not be read."""
        out = np.empty((len(channels), *box.shape), self.dtype) if out is None else out
        planes = range(box.start[0], box.stop[0])
        _, rows, cols = box.slices
        if not self.is_folder:
            self._read_file(0, planes, (rows, cols), channels, out)
        else:
            for i, z in enumerate(planes):
                self._read_file(z, range(z, z + 1), (rows, cols), channels, out[:, i : i + 1])
        return out

    def _read_file(
        self, index: int, planes: range, rows_cols: tuple[slice, slice], channels: tuple[int, ...], out: NDArray[Any]
    ) -> None:
        """Planes of the stack that lie in one file, by its place in the listing; `out` is (c, z, y, x)."""
        z = planes.start
        try:
            file_map = _map_of(self, index)
            with open(file_map.path, "rb", buffering=0) as file:
                found = os.fstat(file.fileno())
                if (found.st_size, found.st_mtime_ns) != file_map.stamp:
                    raise EOFError("it has changed since it was opened")
                for i, z in enumerate(planes):
                    for k, c in enumerate(channels):
                        file_map.read_into(file, c, 0 if self.is_folder else z, rows_cols, out[k, i])
        except (MemoryError, Failure):
            raise
        except Exception as error:  # every codec has errors of its own
            raise Failure(f"{self._file_of(z)[0]}: plane z = {z} could not be read: {error}") from error

    def identity(self) -> dict[str, Any]:
        """What the content depends on: the files' names, sizes and times of last change."""
        kind = "folder of TIFF slices" if self.is_folder else "TIFF"
        return {"kind": kind, "files": {name: [size, time] for name, size, time in self._files()}}

    def _files(self) -> tuple[Listed, ...]:
        return _verified_listing(Path(self.path), self.is_folder, self.listing_sha256)

    def _file_of(self, z: int) -> tuple[Path, Stamp]:
        return _located(self, z if self.is_folder else 0)


@lru_cache(maxsize=2**14)
def _located(source: TiffSource, index: int) -> tuple[Path, Stamp]:
    """The file of a stack at that place of its listing, with the stamp it has to have."""
    name, size, time = source._files()[index]
    return Path(source.path) / name if source.is_folder else Path(source.path), (size, time)


@lru_cache(maxsize=2**12)  # looked up for every slice of every block
def _map_of(source: TiffSource, index: int) -> FileMap:
    """That file's map; of a folder's slices by the first's, where they are alike."""
    path, stamp = _located(source, index)
    return map_slice(path, stamp, map_file(*_located(source, 0))) if source.is_folder else map_file(path, stamp)


def open_tiff(path: Path, *, masks: bool = False) -> TiffSource:
    """A TIFF file, or a folder of slices in natural order (s2 before s10); 1-bit masks only where asked for.

    A gap or a duplicate in the slices' numbering is a UserError (see numbering.py).
    Of a folder the first slice is read fully; of the others the directories are walked (one small
    read each), which finds other sizes, other types and truncated files, without keeping them open.
    """
    if not path.exists():
        raise UserError(f"{path}: there is no such file or folder; give a TIFF file, or a folder with one per z-slice")
    try:
        return _opened(path, masks)
    except OSError as error:
        raise UserError(f"{error.filename or path}: cannot be read: {error.strerror}") from None


def _opened(path: Path, masks: bool) -> TiffSource:
    is_folder = path.is_dir()
    files = _listing(path, is_folder)
    if not files:
        raise UserError(f"{path}: the folder holds no TIFF; one *.tif or *.tiff file per z-slice is expected")
    if is_folder:
        check_numbering(path, [name for name, _, _ in files])
    name, size, time = files[0]
    first = path / name if is_folder else path
    file_map = map_file(first, (size, time))
    dtype = _checked_dtype(first, file_map, masks)
    c, z, y, x = file_map.shape
    if is_folder:
        _check_slices(path, files, file_map)
        z = len(files)
    else:
        _check_is_stack(path, file_map)
    told = file_map.voxel_size_um
    source = TiffSource(str(path), is_folder, (c, z, y, x), dtype, told, _sha256(files), file_map.grain)
    try:  # a codec that is not there shows at the door, not in the night
        source.read(Box((0, 0, 0), (1, 1, 1)), (0,))
    except Failure as error:
        raise UserError(f"{error}; export it again, uncompressed if need be") from None
    return source


def _checked_dtype(path: Path, file_map: FileMap, masks: bool) -> np.dtype[Any]:
    dtype = file_map.dtype.newbyteorder("=")
    if dtype == np.bool_ and masks:
        return np.dtype(np.uint8)
    if dtype not in (np.dtype(np.uint8), np.dtype(np.uint16)):
        raise UserError(f"{path}: its voxels are {dtype}; uint8 or uint16 is expected: convert it to 8 or 16 bit first")
    return dtype


def _check_is_stack(path: Path, file_map: FileMap) -> None:
    c, z, y, x = file_map.shape
    if file_map.told_planes not in (None, c * z):
        raise UserError(
            f"{path}: not a readable TIFF: its metadata tell of {file_map.told_planes} planes, but it holds {c * z}: "
            f"it looks truncated, or the others lie in files of their own; export it as one file, or as slices"
        )
    if z == 1 and file_map.page_of.size == 1 and c > 1:
        raise UserError(
            f"{path}: a single colour picture of {y} × {x} pixels, not a stack; "
            f"give a multi-page TIFF, or a folder with one TIFF per z-slice"
        )
    if z == 1 and c > MOST_CHANNELS:
        raise UserError(
            f"{path}: its metadata tell of {c} channels of one plane each; if these are z-slices, "
            f"set them in Fiji by Image > Properties (slices = {c}, channels = 1) and save it again"
        )


def _check_slices(folder: Path, files: tuple[Listed, ...], first: FileMap) -> None:
    if first.shape[1] != 1:
        raise UserError(
            f"{first.path}: holds {first.shape[1]} pages, but in a folder each file is one z-slice; "
            f"give the file itself as the source, or mark its pages as channels"
        )
    layout, n_pages = read_pages(first.path)[0].layout, len(first.pages)
    for name, _, _ in files[1:]:
        try:
            pages = read_pages(folder / name)
        except BrokenTiff as error:
            raise UserError(f"{folder / name}: not a readable TIFF: {error}; copy or export it again") from None
        found = pages[0].layout
        if (found, len(pages)) != (layout, n_pages):
            raise UserError(
                f"{folder / name}: {_described(found, len(pages))}, but the first slice, {files[0][0]}, has "
                f"{_described(layout, n_pages)}; all slices of a stack must agree"
            )


def _described(layout: tuple[int, ...], n_pages: int) -> str:
    length, width, samples, bits, sample_format, _ = layout
    kind = {1: "unsigned", 2: "signed", 3: "floating point"}.get(sample_format, f"sample format {sample_format}")
    return f"{n_pages} page(s) of {length} × {width} pixels (y, x), {samples} sample(s) of {bits} bit {kind}"


def natural_key(name: str) -> list[int | str]:
    """Sorts numbers by value, words without case.

    >>> sorted(["s10.tif", "s9.tif", "S1.tif"], key=natural_key)
    ['S1.tif', 's9.tif', 's10.tif']
    """
    return [int(part) if i % 2 else part.lower() for i, part in enumerate(re.split(r"(\d+)", name))]


def _listing(path: Path, is_folder: bool) -> tuple[Listed, ...]:
    """The TIFFs of a folder in natural order, hidden files left out; or the one file."""
    if not is_folder:
        found = path.stat()
        return ((path.name, found.st_size, found.st_mtime_ns),)
    files = []
    with os.scandir(path) as entries:
        for entry in entries:
            hidden = entry.name.startswith(".")
            if not hidden and entry.name.lower().endswith((".tif", ".tiff")) and entry.is_file():
                found = entry.stat()
                files.append((entry.name, found.st_size, found.st_mtime_ns))
    return tuple(sorted(files, key=lambda f: (natural_key(f[0]), f[0])))


def _sha256(files: tuple[Listed, ...]) -> str:
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


@lru_cache(maxsize=1024)  # a mosaic may have that many folders of slices
def _verified_listing(path: Path, is_folder: bool, expected_sha256: str) -> tuple[Listed, ...]:
    try:
        files = _listing(path, is_folder)
    except OSError as error:
        raise Failure(f"{path}: can no longer be read: {error}") from None
    if _sha256(files) != expected_sha256:
        raise Failure(f"{path}: has changed since it was opened; run again once nothing writes to it any more")
    return files
