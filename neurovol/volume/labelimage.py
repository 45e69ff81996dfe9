"""Label images as annotations: OME-Zarr labels as napari and ome-zarr write them, Zarr arrays, and TIFF masks.

Unlike images they may hold any integers, the numbers of instances. A chunk of a Zarr that is not there holds its
fill value, as Zarr has it; only codecs that are known to be harmless are used (one of numcodecs runs pickles).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
from numpy.typing import NDArray

from neurovol.errors import Failure, UserError
from neurovol.geometry import Box
from neurovol.volume.tiff import TiffSource, open_tiff
from neurovol.volume.tiffmap import Stamp, map_file

Files = tuple[tuple[str, int, int], ...]  # path within the array, size in bytes, time of last change in ns

_METADATA = ("zarr.json", ".zarray", ".zgroup", ".zattrs")
_CODECS = {
    *("blosc", "zstd", "gzip", "zlib", "lz4", "bz2", "lzma", "bytes", "transpose", "sharding_indexed"),
    *("crc32c", "crc32", "adler32", "fletcher32", "shuffle", "delta", "packbits"),
}


@dataclass(frozen=True)
class LabelImage:
    """A Zarr array of labels; (1, z, y, x), any integers. Axes beside z, y, x have length 1."""

    path: str  # of the array
    axes: str  # of the array, such as "tczyx"
    shape: tuple[int, int, int, int]
    dtype: np.dtype[Any]
    listing_sha256: str  # of all its files, so that an array that changes under way is noticed

    def read(self, box: Box, channels: tuple[int, ...]) -> NDArray[Any]:
        """(1, z, y, x) of a box inside the image, only its chunks loaded; Failure names the array and the box."""
        place = dict(zip("zyx", box.slices, strict=True))
        try:
            array, files = _array(Path(self.path), self.listing_sha256)
            _check_chunks(Path(self.path), array, files, tuple(place.get(a, slice(0, 1)) for a in self.axes))
            drawn = np.asarray(array[tuple(place.get(a, 0) for a in self.axes)])
        except MemoryError:
            raise
        except Exception as error:  # every codec has errors of its own
            raise Failure(f"{self.path}: box {box.pairs} (z, y, x) could not be read: {error}") from error
        return drawn.astype(self.dtype, copy=False).reshape(1, *box.shape)

    def identity(self) -> dict[str, Any]:
        """What the content depends on: the names, sizes and times of last change of all files of the array."""
        _, files = _array(Path(self.path), self.listing_sha256)
        held = {"number": len(files), "bytes": sum(size for size, _ in files.values())}
        return {"kind": "Zarr labels", "axes": self.axes, "files": held, "listing_sha256": self.listing_sha256}


@dataclass(frozen=True)
class WideMask:
    """A TIFF file of integers that images never have (32 bit, or signed), as instance masks do; (1, z, y, x)."""

    path: str
    stamp: Stamp
    shape: tuple[int, int, int, int]
    dtype: np.dtype[Any]

    def read(self, box: Box, channels: tuple[int, ...]) -> NDArray[Any]:
        """(1, z, y, x) of a box inside the stack; Failure names the file and z that could not be read."""
        out = np.empty((1, *box.shape), self.dtype)
        _, rows, cols = box.slices
        for i, z in enumerate(range(box.start[0], box.stop[0])):
            try:
                with Path(self.path).open("rb") as file:
                    if _stamp(os.fstat(file.fileno())) != self.stamp:
                        raise EOFError("it has changed since it was opened")
                    out[0, i] = map_file(Path(self.path), self.stamp).read_plane(file, 0, z, (rows, cols))
            except MemoryError:
                raise
            except Exception as error:  # every codec has errors of its own
                raise Failure(f"{self.path}: plane z = {z} could not be read: {error}") from error
        return out

    def identity(self) -> dict[str, Any]:
        return {"kind": "TIFF", "files": {Path(self.path).name: list(self.stamp)}}


Labels = LabelImage | WideMask | TiffSource


def open_labels(path: Path) -> Labels:
    """An image of labels: a Zarr array, the finest level of an OME-Zarr image of labels, a TIFF, a folder of slices."""
    try:
        if path.is_dir():
            is_zarr = any((path / name).is_file() for name in _METADATA)
            return _open_zarr(path) if is_zarr else open_tiff(path, masks=True)
        if path.is_file():
            wide = _wide_mask(path, _stamp(path.stat()))
            if wide is not None:
                return wide
        return open_tiff(path, masks=True)
    except OSError as error:
        raise UserError(f"{error.filename or path}: cannot be read: {error.strerror or error}") from None


def _stamp(found: os.stat_result) -> Stamp:
    return found.st_size, found.st_mtime_ns


def _wide_mask(path: Path, stamp: Stamp) -> WideMask | None:
    """None where the voxels are such as open_tiff reads, or refuses."""
    file_map = map_file(path, stamp)
    dtype = file_map.dtype.newbyteorder("=")
    c, z, _, _ = file_map.shape
    if dtype.kind not in "ui" or dtype in (np.uint8, np.uint16) or file_map.told_planes not in (None, c * z):
        return None
    mask = WideMask(str(path), stamp, file_map.shape, dtype)
    try:  # a codec that is not there shows at the door, not in the night
        mask.read(Box((0, 0, 0), (1, 1, 1)), (0,))
    except Failure as error:
        raise UserError(f"{error}; export it again, uncompressed if need be") from None
    return mask


def _open_zarr(path: Path) -> LabelImage:
    folder, names = _finest(path)
    about = _metadata(folder)
    _check_codecs(folder, about)
    listing = _sha256(_listing(folder))
    try:
        array, _ = _array(folder, listing)
    except Exception as error:  # of metadata and codecs that zarr does not know
        raise UserError(f"{folder}: cannot be opened as a Zarr array: {error}; write it again in another way") from None
    if array.dtype.kind not in "uib":
        raise UserError(f"{folder}: its voxels are {array.dtype}; labels are integers: convert them first")
    axes = _axes(folder, array.shape, names or tuple(filter(None, about.get("dimension_names") or ())))
    z, y, x = (dict(zip(axes, array.shape, strict=True)).get(a, 1) for a in "zyx")
    dtype = np.dtype(np.uint8) if array.dtype == np.bool_ else array.dtype.newbyteorder("=")
    image = LabelImage(str(folder), axes, (1, z, y, x), dtype, listing)
    try:  # a codec that is not there shows at the door, not in the night
        image.read(Box((0, 0, 0), (1, 1, 1)), (0,))
    except Failure as error:
        raise UserError(f"{error}; copy or write it again") from None
    return image


def _finest(path: Path) -> tuple[Path, tuple[str, ...]]:
    """The folder of the array that holds the labels, and the names of its axes where OME metadata tell them."""
    about = _metadata(path)
    if about.get("node_type", "array") == "array" and "shape" in about:
        return path, ()
    attributes = about.get("attributes", {})
    ome = attributes.get("ome", attributes)  # OME-Zarr 0.5 keeps its metadata under "ome"
    ome = ome if isinstance(ome, dict) else {}
    inside = [p.name for p in sorted((path / "labels").glob("*")) if p.is_dir()]
    is_image = "omero" in ome and "image-label" not in ome
    if inside or is_image or not ome.get("multiscales"):
        there = [f"labels/{name}" for name in inside] or ome.get("labels", [])
        raise UserError(
            f"{path}: is a Zarr group, but no image of labels; "
            + (f"it holds {', '.join(there)}: give one of them" if there else "give the group or array that is one")
        )
    try:
        multiscale = ome["multiscales"][0]
        inner = str(multiscale["datasets"][0]["path"])
        names = tuple(str(a["name"] if isinstance(a, dict) else a) for a in multiscale.get("axes", ()))
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise UserError(f"{path}: its OME-Zarr multiscales are not as 0.4 or 0.5 has them: {error!r}") from None
    folder = path / inner
    if not folder.resolve().is_relative_to(path.resolve()) or "shape" not in _metadata(folder):
        raise UserError(f"{folder}: there is no Zarr array, though the image names it as its finest level")
    return folder, names


def _metadata(folder: Path) -> dict[str, Any]:
    """Of an array or group, v3 or v2, as one dictionary with its "attributes"; {} where there is neither."""
    about: dict[str, Any] = {}
    try:
        if (folder / "zarr.json").is_file():
            about = json.loads((folder / "zarr.json").read_text(encoding="utf-8"))
        elif (folder / ".zarray").is_file():
            about = json.loads((folder / ".zarray").read_text(encoding="utf-8"))
        if (folder / ".zattrs").is_file() and "attributes" not in about:
            about["attributes"] = json.loads((folder / ".zattrs").read_text(encoding="utf-8"))
        if not isinstance(about.get("attributes", {}), dict):
            raise ValueError("attributes are no object")
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{folder}: holds no readable Zarr metadata: {error}; copy or export it again") from None
    return about


def _check_codecs(folder: Path, about: dict[str, Any]) -> None:
    given = [about.get("codecs"), about.get("compressor"), about.get("filters")]
    for name in _codec_names(given):
        if name.removeprefix("numcodecs.") not in _CODECS:
            raise UserError(f"{folder}: is compressed by {name!r}, which is not among {sorted(_CODECS)}; write it anew")


def _codec_names(given: Any) -> Iterator[str]:
    if isinstance(given, list):
        for codec in given:
            yield from _codec_names(codec)
    elif isinstance(given, dict):
        yield str(given.get("id", given.get("name")))
        configuration = given.get("configuration")
        if isinstance(configuration, dict):
            yield from _codec_names([configuration.get("codecs"), configuration.get("index_codecs")])


def _axes(folder: Path, shape: tuple[int, ...], names: tuple[str, ...]) -> str:
    """One letter per axis; without names the last three are z, y, x.

    >>> _axes(Path("a"), (1, 7, 9, 11), ())
    'czyx'
    """
    axes = "".join(str(name).lower()[:1] for name in names) if len(names) == len(shape) else "tczyx"[-len(shape) :]
    order = "".join(a for a in axes if a in "zyx")
    extra = [n for a, n in zip(axes, shape, strict=False) if a not in "zyx"]
    if len(axes) != len(shape) or order not in ("zyx", "yx") or set(extra) - {1} or len(set(axes)) < len(axes):
        told = f", its axes are {', '.join(map(str, names))}" if names else ""
        raise UserError(
            f"{folder}: its shape is {shape}{told}; labels have the axes z, y, x, "
            f"in that order, and others only of length 1"
        )
    return axes


def _listing(folder: Path) -> Files:
    """All files of an array; an empty one, which zarr would read as fill values, is refused."""
    files = []
    for parent, _, names in os.walk(folder):
        for name in names:
            if (name.startswith(".") and name not in _METADATA) or name.endswith(".partial"):
                continue
            file = Path(parent) / name
            size, time = _stamp(file.stat())
            if size == 0:
                raise UserError(f"{file}: this chunk's file is empty; copy or export the labels again")
            files.append((file.relative_to(folder).as_posix(), size, time))
    return tuple(sorted(files))


def _sha256(files: Files) -> str:
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


@lru_cache(maxsize=16)
def _array(folder: Path, listing_sha256: str) -> tuple[zarr.Array[Any], dict[str, Stamp]]:
    """The array, and its files; listed once per process, to see that they are those it was opened with."""
    files = _listing(folder)
    if _sha256(files) != listing_sha256:
        raise EOFError("it has changed since it was opened; run again once nothing writes to it any more")
    version: Literal[2, 3] = 3 if (folder / "zarr.json").is_file() else 2
    return zarr.open_array(str(folder), mode="r", zarr_format=version), {n: (size, time) for n, size, time in files}


def _check_chunks(folder: Path, array: zarr.Array[Any], files: dict[str, Stamp], wanted: tuple[slice, ...]) -> None:
    """Refuse to read chunks that have changed since the array was listed."""
    steps = array.shards or array.chunks
    cells = (range(s.start // n, -(-s.stop // n)) for s, n in zip(wanted, steps, strict=True))
    for cell in product(*cells):
        key = array.metadata.encode_chunk_key(cell)
        there = _stamp((folder / key).stat()) if (folder / key).exists() else None
        if there != files.get(key):
            raise EOFError(f"{key} has changed since it was opened; run again once nothing writes to it any more")
