"""A sample as HDF5: an Imaris file (.ims), or any file with one stack in it; needs the optional h5py."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurovol.errors import Failure, UserError
from neurovol.geometry import Box, Zyx
from neurovol.volume.zarrmeta import axes_of

VoxelSize = tuple[float, float, float]
Stamp = tuple[int, int]  # size in bytes, time of last change in ns

LISTED = 8  # datasets that a message names
_FINEST = "DataSet/ResolutionLevel 0"
_MICROMETRES = {"um": 1.0, "µm": 1.0, "μm": 1.0, "nm": 1e-3, "mm": 1e3, "m": 1e6}
_WITHIN = re.compile(r"(.+\.(?:h5|hdf5|ims)):/?(.+)", re.IGNORECASE | re.DOTALL)  # FILE.h5:/path/of/dataset


@dataclass(frozen=True)
class HdfSource:
    """Datasets of an HDF5 file; (c, z, y, x), uint8 or uint16. A chunk never written is its fill value, as in HDF5."""

    path: str
    kind: str  # "Imaris" or "HDF5"
    datasets: tuple[str, ...]  # one per channel, or one of all
    axes: str  # of a dataset, in its order
    shape: tuple[int, int, int, int]  # datasets of Imaris may be larger, padded to whole chunks
    dtype: np.dtype[Any]
    voxel_size_um: VoxelSize | None
    grain: Zyx  # a chunk; (1, 1, 1) where there are none
    stamp: Stamp

    def read(self, box: Box, channels: tuple[int, ...], out: NDArray[Any] | None = None) -> NDArray[Any]:
        """(c, z, y, x) of a box inside the stack; Failure names the file and the box."""
        out = np.empty((len(channels), *box.shape), self.dtype) if out is None else out
        try:
            if _stamp(self.path) != self.stamp:
                raise ValueError("it has changed since it was opened; run again once nothing writes to it any more")
            with _opened_file(self.path) as file:
                for k, c in enumerate(channels if box.size else ()):
                    self._read_channel(file, c, box, out[k])
        except MemoryError:
            raise
        except Exception as error:  # HDF5 has many
            raise Failure(f"{self.path}: box {box.pairs} (z, y, x) could not be read: {error}") from error
        return out

    def _read_channel(self, file: Any, channel: int, box: Box, out_ZYX: NDArray[Any]) -> None:
        dataset = file[self.datasets[channel if len(self.datasets) > 1 else 0]]
        place = {"t": 0, "c": channel, **dict(zip("zyx", box.slices, strict=True))}
        selection = tuple(place[a] for a in self.axes)
        kept = [a for a in self.axes if a in "zyx"]
        if out_ZYX.flags.c_contiguous and kept == ["z", "y", "x"]:
            dataset.read_direct(out_ZYX, selection)  # no second array of the box
        else:
            out_ZYX[:] = dataset[selection].transpose([kept.index(a) for a in "zyx" if a in kept])

    def identity(self) -> dict[str, Any]:
        """What the content depends on: the file's name, size and time of last change, and what of it is read."""
        files = {Path(self.path).name: list(self.stamp)}
        return {"kind": self.kind, "files": files, "datasets": list(self.datasets), "axes": self.axes}


def _stamp(path: str | Path) -> Stamp:
    found = Path(path).stat()
    return found.st_size, found.st_mtime_ns


@contextmanager
def _opened_file(path: str | Path) -> Iterator[Any]:
    # no lock: it is only read, network filesystems often have none, and the stamp tells of changes
    with import_module("h5py").File(path, "r", locking=False) as file:
        yield file


def open_imaris(path: Path) -> HdfSource:
    """An Imaris file, or an HDF5 file with one stack; FILE.h5:/path picks one of several. Checked at the door.

    Of Imaris the finest level is read. Datasets of 3 axes are z, y, x, of 4 axes c, z, y, x, unless the labels
    of their dimensions say otherwise; `element_size_um` of a dataset, as Fiji writes it, is its voxel size.
    """
    file, inner = _parted(Path(path))
    try:
        import_module("h5py")
    except ImportError:
        raise UserError(
            f"{file}: Imaris and HDF5 files are read by h5py, which is not installed; run: pip install 'neurovol[hdf5]'"
        ) from None
    try:
        stamp = _stamp(file)
        with _opened_file(file) as opened:
            source = _described(file, opened, inner, stamp)
    except FileNotFoundError:
        raise UserError(f"{file}: there is no such file; give an Imaris (.ims) or HDF5 file") from None
    except (OSError, KeyError, RuntimeError, ValueError) as error:  # with words of HDF5 or of the system
        raise UserError(f"{file}: not a readable HDF5 file: {error}; copy or export it again") from None
    try:  # a filter that is not there shows at the door, not in the night
        source.read(Box((0, 0, 0), (1, 1, 1)), (0,))
    except Failure as error:
        raise UserError(f"{error}; export it again, uncompressed if need be") from None
    return source


def _parted(path: Path) -> tuple[Path, str | None]:
    """The file, and the dataset in it that is meant, if one is named.

    >>> _parted(Path("raw/a.h5:/exported/data"))
    (PosixPath('raw/a.h5'), 'exported/data')
    """
    match = None if path.exists() else _WITHIN.fullmatch(str(path))
    return (Path(match[1]), match[2]) if match else (path, None)


def _described(path: Path, file: Any, inner: str | None, stamp: Stamp) -> HdfSource:
    if inner is None and _FINEST in file:
        return _imaris(path, file, stamp)
    if inner is None and path.suffix.lower() == ".ims":
        raise UserError(f"{path}: is no Imaris file, for it holds no {_FINEST}; export it again")
    return _plain(path, file, inner if inner is not None else _only_stack(path, file), stamp)


def _imaris(path: Path, file: Any, stamp: Stamp) -> HdfSource:
    level = file[_FINEST]
    if len(level) != 1:
        raise UserError(
            f"{path}: holds {len(level)} time points, but a sample has one; export the one you mean by itself"
        )
    time = level["TimePoint 0"]
    names = tuple(f"{_FINEST}/TimePoint 0/Channel {c}/Data" for c in range(len(time)))
    first = _checked(path, file, names[0] if names else f"{_FINEST}/TimePoint 0/Channel 0/Data", None)
    for name in names[1:]:
        _checked(path, file, name, first)
    told = file["DataSetInfo/Image"].attrs if "DataSetInfo/Image" in file else {}
    z, y, x = (int(_number(told, axis) or 0) for axis in "ZYX")
    if not (0 < z <= first.shape[0] and 0 < y <= first.shape[1] and 0 < x <= first.shape[2]):
        raise UserError(
            f"{path}: its DataSetInfo/Image tells the size {(z, y, x)} (z, y, x), which its data of {first.shape} "
            f"do not hold; export it again"
        )
    voxel_size_um = _imaris_voxel_size(told, (z, y, x))
    return HdfSource(
        str(path),
        "Imaris",
        names,
        "zyx",
        (len(names), z, y, x),
        _native(first),
        voxel_size_um,
        _grain(first, "zyx"),
        stamp,
    )


def _text(attributes: Any, name: str) -> str:
    """Imaris keeps text, and numbers too, as arrays of single characters."""
    value = np.atleast_1d(attributes.get(name, ""))
    return "".join(v.decode("latin-1") if isinstance(v, bytes) else str(v) for v in value.tolist()).strip()


def _number(attributes: Any, name: str) -> float | None:
    try:
        return float(_text(attributes, name))
    except ValueError:
        return None


def _imaris_voxel_size(told: Any, shape: Zyx) -> VoxelSize | None:
    """(z, y, x) in µm from the image's extent, whose axes Imaris counts x, y, z; None unless all of it is told."""
    factor = _MICROMETRES.get(_text(told, "Unit"))
    ends = [(_number(told, f"ExtMin{i}"), _number(told, f"ExtMax{i}")) for i in (2, 1, 0)]
    if factor is None or any(a is None or b is None for a, b in ends):
        return None
    return _positive(
        [(b - a) / n * factor for (a, b), n in zip(ends, shape, strict=True) if a is not None and b is not None]
    )


def _positive(sizes: list[float]) -> VoxelSize | None:
    z, y, x = sizes
    return (z, y, x) if all(0 < s < inf for s in sizes) else None


def _only_stack(path: Path, file: Any) -> str:
    """The name of the one dataset of 3 or 4 axes."""
    found: list[str] = []
    file.visititems(lambda name, item: found.append(name) if getattr(item, "ndim", 0) in (3, 4) else None)
    if len(found) == 1:
        return found[0]
    if not found:
        raise UserError(f"{path}: holds no dataset of 3 (z, y, x) or 4 axes (c, z, y, x); export a stack to it")
    listed = ", ".join(f"/{name} {file[name].shape}" for name in islice(found, LISTED))
    more = f" and {len(found) - LISTED} more" if len(found) > LISTED else ""
    raise UserError(f"{path}: holds {len(found)} stacks: {listed}{more}; give the one you mean as {path}:/{found[0]}")


def _plain(path: Path, file: Any, name: str, stamp: Stamp) -> HdfSource:
    dataset = _checked(path, file, name, None)
    axes = axes_of(f"{path}:/{name}", dataset.shape, [dim.label for dim in dataset.dims])
    sizes = dict(zip(axes, dataset.shape, strict=True))
    c, z, y, x = (sizes.get(a, 1) for a in "czyx")
    told = np.ravel(dataset.attrs.get("element_size_um", ())).tolist()
    voxel_size_um = _positive([float(size) for size in told]) if len(told) == 3 else None
    grain = _grain(dataset, axes)
    return HdfSource(str(path), "HDF5", (name,), axes, (c, z, y, x), _native(dataset), voxel_size_um, grain, stamp)


def _checked(path: Path, file: Any, name: str, first: Any) -> Any:
    """A dataset that can be a sample, and is like the first channel where there is one."""
    where, dataset = f"{path}:/{name}", file.get(name)
    if dataset is None or not hasattr(dataset, "ndim"):
        raise UserError(f"{where}: there is no such dataset in the file")
    if dataset.ndim < 3 or 0 in dataset.shape:
        raise UserError(
            f"{where}: is no stack, its shape is {dataset.shape}; 3 (z, y, x) or 4 axes (c, z, y, x) are expected"
        )
    if _native(dataset) not in (np.dtype(np.uint8), np.dtype(np.uint16)):
        raise UserError(
            f"{where}: its voxels are {dataset.dtype}; uint8 or uint16 is expected: convert it to 8 or 16 bit"
        )
    if dataset.is_virtual or dataset.external:  # HDF5 reads them as fill values where those are missing
        raise UserError(f"{where}: its voxels lie in other files; copy it to a file of its own, as by h5repack")
    if first is not None and (dataset.shape, dataset.dtype) != (first.shape, first.dtype):
        raise UserError(
            f"{where}: {dataset.dtype} of shape {dataset.shape}, but channel 0 is {first.dtype} of shape "
            f"{first.shape}; all channels must agree"
        )
    return dataset


def _native(dataset: Any) -> np.dtype[Any]:
    dtype: np.dtype[Any] = dataset.dtype
    return dtype.newbyteorder("=")


def _grain(dataset: Any, axes: str) -> Zyx:
    chunk = dict(zip(axes, dataset.chunks or (1,) * len(axes), strict=True))
    return int(chunk.get("z", 1)), int(chunk["y"]), int(chunk["x"])
