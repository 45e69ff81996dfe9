"""What a sample arrives as: a small picklable reader of TIFFs or of a phantom."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from neurovol.errors import UserError
from neurovol.geometry import Box, Zyx, reflected
from neurovol.samplesettings import Sample
from neurovol.volume.tiff import open_tiff

VoxelSize = tuple[float, float, float]

_HDF5 = re.compile(r"\.(ims|h5|hdf5)(:.*)?$", re.IGNORECASE)
_ZARR_FILES = ("zarr.json", ".zarray", ".zgroup", ".zattrs")

# beyond this relative difference two voxel sizes are two sizes (design, invariant 8)
VOXEL_SIZE_TOLERANCE = 0.01


class Source(Protocol):
    """A sample as it arrives; frozen, picklable, without open handles."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(c, z, y, x)."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint8 or uint16."""
        ...

    @property
    def voxel_size_um(self) -> VoxelSize | None:
        """(z, y, x) in µm, as the source itself tells it; None where it does not."""
        ...

    @property
    def grain(self) -> Zyx:
        """(z, y, x) of what has to be decoded at once to read a voxel; (1, 1, 1) where any can be read by itself."""
        ...

    def read(self, box: Box, channels: tuple[int, ...], out: NDArray[Any] | None = None) -> NDArray[Any]:
        """(c, z, y, x) of a box inside the sample, channels in the order asked for; into `out` where one is given."""
        ...

    def identity(self) -> dict[str, Any]:
        """What determines the content, JSON-able: kind, files with size and time of last change."""
        ...


def open_source(sample: Sample, root: Path) -> Source:
    """The source that a sample's settings name, checked at the door; paths are relative to `root`."""
    source = _opened(sample, root)
    wanted = sample.channels_of(source.shape[0])
    if max(wanted) >= source.shape[0]:
        where = " with ".join(str(root / path) for path in sample.source or ()) or "its phantom"
        raise UserError(
            f"sample {sample.name}: channels {wanted} are asked for, but {where} has {source.shape[0]} "
            f"channel(s); channels count from 0, so the last is {source.shape[0] - 1}"
        )
    return source


def _opened(sample: Sample, root: Path) -> Source:
    if sample.phantom is not None:
        from neurovol.volume.phantom import PhantomSource  # few samples need it

        wanted = sample.phantom
        phantom = PhantomSource(wanted.shape, wanted.seed, wanted.contrast)
        # a phantom has the voxels that are asked for
        return phantom if sample.voxel_size_um is None else replace(phantom, voxel_size_um=sample.voxel_size_um)
    assert sample.source is not None  # the settings hold one or the other
    paths = [root / path for path in sample.source]
    if len(paths) == 1:
        return open_path(paths[0])
    from neurovol.volume.channels import join_channels

    return join_channels(paths)


def open_path(path: Path) -> Source:
    """The source at a path, its kind told by looking: by a file's name, or by what a folder holds."""
    if _HDF5.search(str(path)):
        from neurovol.volume.imaris import open_imaris

        return open_imaris(path)
    if path.suffix == ".zarr" or any((path / name).is_file() for name in _ZARR_FILES):
        from neurovol.volume.zarrsource import open_zarr

        return open_zarr(path)
    if path.suffix in (".yml", ".yaml") or (path / "stitch.yml").is_file():
        from neurovol.volume.zetastitcher import open_zetastitcher

        return open_zetastitcher(path)
    return open_tiff(path)


def voxel_size_of(sample: Sample, source: Source) -> VoxelSize:
    """(z, y, x) in µm; a UserError where settings and source disagree by more than 1 %, or neither tells."""
    told, set_ = source.voxel_size_um, sample.voxel_size_um
    if set_ is None:
        if told is None:
            raise UserError(
                f"sample {sample.name}: its source does not tell the voxel size; "
                f"give it in µm as --voxel-size Z Y X, or in a project file as voxel_size_um = [z, y, x]"
            )
        return told
    if told is not None and any(abs(a / b - 1) > VOXEL_SIZE_TOLERANCE for a, b in zip(set_, told, strict=True)):
        raise UserError(
            f"sample {sample.name}: voxel_size_um is set to {list(set_)}, but its source tells "
            f"{[round(t, 6) for t in told]} (z, y, x in µm), and they may differ by 1 % at most; "
            f"correct the setting, or leave it out to take the source's"
        )
    return set_


def read_reflected(reader: Any, box: Box, volume: Zyx, channels: tuple[int, ...] | None = None) -> NDArray[Any]:
    """A box that may leave the volume, which is continued by reflection; (c, z, y, x) or (z, y, x) as read.

    `reader` is called as read(box, channels) where channels are given, else as read(box).
    """
    plan = reflected(box, volume)
    array = cast("NDArray[Any]", reader.read(plan.inner) if channels is None else reader.read(plan.inner, channels))
    for axis, indices in enumerate(plan.take, start=array.ndim - 3):
        if indices is not None:
            array = np.take(array, indices, axis=axis)
    return array
