"""One tile of a mosaic as a stack: a TIFF file, a folder of TIFFs, or a zip with one picture per z-slice.

Pictures in a zip are PNG, TIFF or JPEG 2000, in natural order of their names (s2 before s10).
"""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray

from neurovol.errors import Failure, UserError
from neurovol.geometry import Box, Zyx
from neurovol.volume.tiff import _listing, _sha256, natural_key, open_tiff
from neurovol.volume.tiffmap import Stamp, _cache

REFUSED = {
    ".dcimg": "a DCIMG file of Hamamatsu's",
    ".mhd": "a MetaImage", ".mha": "a MetaImage",
    ".avi": "a video", ".mp4": "a video", ".mov": "a video", ".mkv": "a video", ".m4v": "a video", ".wmv": "a video",
    ".mpg": "a video", ".mpeg": "a video", ".webm": "a video",
}  # fmt: skip
WAY_OUT = "tiles may be TIFF files, folders of TIFFs, or zips of PNG, TIFF or JPEG 2000 slices: convert it to one"
STORED_OR_DEFLATED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
ENCRYPTED = 1  # the bit of a member's flags


class TileStack(Protocol):
    """A stack that is read in parts; frozen, picklable, without open handles."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(c, z, y, x)."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint8 or uint16."""
        ...

    @property
    def grain(self) -> Zyx:
        """(z, y, x) of what is decoded at once."""
        ...

    def read(self, box: Box, channels: tuple[int, ...], out: NDArray[Any] | None = None) -> NDArray[Any]:
        """(c, z, y, x) of a box inside the stack; Failure names file and z."""
        ...


def open_stack(path: Path) -> TileStack:
    """What lies at a path, as a stack; a UserError where it is none, of another kind, or broken."""
    check_kind(path)
    if path.suffix.lower() == ".zip" and path.is_file():
        return open_zip(path)
    return open_tiff(path)


def check_kind(path: Path) -> None:
    """Refuse a kind of file that is not read, by its name; a folder, or what is not there, may have any other."""
    suffix = path.suffix.lower()
    if suffix in REFUSED:
        raise UserError(f"{path}: is {REFUSED[suffix]} ({suffix}), which is not read; {WAY_OUT}")
    if path.is_file() and suffix not in (".tif", ".tiff", ".zip"):
        raise UserError(f"{path}: is a file of kind {suffix or 'unknown'}, which is not read; {WAY_OUT}")


@dataclass(frozen=True)
class Files:
    """The files of a tile as they are now, counted and summed up so that a change shows."""

    n: int
    size_bytes: int
    sha256: str  # of names, sizes and times, as TiffSource makes it


def files_of(path: Path) -> Files | None:
    """What a tile consists of, by stat alone; None where nothing is there."""
    try:
        found = _listing(path, path.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return None
    return Files(len(found), sum(size for _, size, _ in found), _sha256(found))


def _check_unchanged(file: BinaryIO, stamp: Stamp) -> None:
    found = os.fstat(file.fileno())
    if (found.st_size, found.st_mtime_ns) != stamp:
        raise EOFError("it has changed since it was opened")


@dataclass(frozen=True)
class ZipStack:
    """A zip with one picture per z-slice; the samples of colour pictures are the channels."""

    path: str
    stamp: Stamp
    shape: tuple[int, int, int, int]
    dtype: np.dtype[Any]

    @property
    def grain(self) -> Zyx:
        return 1, *self.shape[2:]

    def read(self, box: Box, channels: tuple[int, ...], out: NDArray[Any] | None = None) -> NDArray[Any]:
        """(c, z, y, x) of a box inside the stack; Failure names the file and z that could not be read."""
        out = np.empty((len(channels), *box.shape), self.dtype) if out is None else out
        _, rows, cols = box.slices
        for i, z in enumerate(range(box.start[0], box.stop[0])):
            try:
                plane = self._plane(z)
            except MemoryError:
                raise
            except Exception as error:  # every codec has errors of its own
                raise Failure(f"{self.path}: plane z = {z} could not be read: {error}") from error
            for k, c in enumerate(channels):
                out[k, i] = plane[c, rows, cols]
        return out

    def _plane(self, z: int) -> NDArray[Any]:
        """(c, y, x); the last decoded ones are kept."""
        path = Path(self.path)
        with path.open("rb") as file:
            _check_unchanged(file, self.stamp)
            key = (path, self.stamp, "zip", z)
            plane = _cache.get(key)
            if plane is None:
                member = _members(path, self.stamp)[z]
                plane = _decoded(file, member)
                first = (self.shape[0], *self.shape[2:])
                if (plane.shape, plane.dtype) != (first, self.dtype):
                    found_here = f"{member.name} is {plane.shape}, {plane.dtype}"
                    raise ValueError(f"{found_here} (c, y, x), but the first slice {first}, {self.dtype}")
                _cache.put(key, plane)
        return plane


def open_zip(path: Path) -> ZipStack:
    """A zip of slices, the first of them decoded; a UserError where that fails."""
    found = path.stat()
    stamp = (found.st_size, found.st_mtime_ns)
    members = _members(path, stamp)
    try:
        with path.open("rb") as file:
            first = _decoded(file, members[0])
    except Exception as error:  # every codec has errors of its own
        raise UserError(f"{path}: its slice {members[0].name} cannot be decoded: {error}; zip it again") from None
    if first.dtype not in (np.dtype(np.uint8), np.dtype(np.uint16)):
        raise UserError(f"{path}: its voxels are {first.dtype}; uint8 or uint16 is expected: convert it to 8 or 16 bit")
    c, y, x = first.shape
    return ZipStack(str(path), stamp, (c, len(members), y, x), first.dtype)


@dataclass(frozen=True, slots=True)
class Member:
    """One picture of a zip, and where its bytes lie."""

    name: str
    header_offset: int
    stored_bytes: int
    size_bytes: int
    compression: int
    crc32: int


@lru_cache(maxsize=64)
def _members(path: Path, stamp: Stamp) -> tuple[Member, ...]:
    """The pictures of a zip in natural order; hidden ones, and what is no picture, are left out."""
    try:
        with zipfile.ZipFile(path) as archive:
            listed = [info for info in archive.infolist() if not info.is_dir() and not _is_hidden(info.filename)]
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError) as error:  # all that damage was seen to raise
        raise UserError(
            f"{path}: not a readable zip: {error}; it looks truncated or damaged: copy or zip it again"
        ) from None
    pictures = [info for info in listed if _suffix(info.filename) in DECODERS]
    if not pictures:
        kinds = ", ".join(f"{n} {kind or 'without an extension'}" for kind, n in _kinds(listed).items()) or "nothing"
        raise UserError(f"{path}: the zip holds no PNG, TIFF or JPEG 2000 slice, but {kinds}; {WAY_OUT}")
    odd = next((i for i in pictures if i.flag_bits & ENCRYPTED or i.compress_type not in STORED_OR_DEFLATED), None)
    if odd is not None:
        raise UserError(
            f"{path}: its slice {odd.filename} is encrypted, or packed by method {odd.compress_type}; "
            f"stored (0) and deflated (8) slices are read: zip it again"
        )
    pictures.sort(key=lambda info: (natural_key(info.filename), info.filename))
    return tuple(
        Member(i.filename, i.header_offset, i.compress_size, i.file_size, i.compress_type, i.CRC) for i in pictures
    )


def _is_hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts)


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _kinds(infos: list[zipfile.ZipInfo]) -> Counter[str]:
    return Counter(_suffix(info.filename) for info in infos)


def _decoded(file: BinaryIO, member: Member) -> NDArray[Any]:
    """(c, y, x) of one picture, native byte order."""
    decoded = DECODERS[_suffix(member.name)](_bytes_of(file, member))
    return np.ascontiguousarray(decoded[None] if decoded.ndim == 2 else np.moveaxis(decoded, -1, 0))


def _bytes_of(file: BinaryIO, member: Member) -> bytes:
    """The unpacked bytes of a member, which its checksum vouches for."""
    file.seek(member.header_offset)
    name_bytes, extra_bytes = struct.unpack_from("<HH", file.read(30), 26)  # the local header's two variable parts
    file.seek(name_bytes + extra_bytes, os.SEEK_CUR)
    data = file.read(member.stored_bytes)
    if member.compression == zipfile.ZIP_DEFLATED:
        data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, member.size_bytes or 1)
    if len(data) != member.size_bytes or zlib.crc32(data) != member.crc32:
        raise ValueError(f"{member.name} in it is damaged: its checksum does not fit")
    return data


def _tiff_decode(data: bytes) -> NDArray[Any]:
    """(y, x) or (y, x, c) of a TIFF of one page."""
    with tifffile.TiffFile(BytesIO(data)) as tif:
        if len(tif.pages) != 1:
            raise ValueError(f"it holds {len(tif.pages)} pages, but in a zip each picture is one z-slice")
        page = tif.pages[0]
        plane = np.asarray(page.asarray())
        plane = np.moveaxis(plane, 0, -1) if page.axes == "SYX" else plane
    return plane.astype(plane.dtype.newbyteorder("="), copy=False)


DECODERS: dict[str, Callable[[bytes], NDArray[Any]]] = {
    ".png": imagecodecs.png_decode,
    ".tif": _tiff_decode,
    ".tiff": _tiff_decode,
    ".jp2": imagecodecs.jpeg2k_decode,
    ".j2k": imagecodecs.jpeg2k_decode,
    ".jpx": imagecodecs.jpeg2k_decode,
}
