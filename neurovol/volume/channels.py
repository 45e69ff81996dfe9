"""A sample whose channels arrive as sources of their own, a folder or file each, read as one source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurovol.errors import UserError
from neurovol.geometry import Box, Zyx, zyx
from neurovol.volume.source import VOXEL_SIZE_TOLERANCE, Source, VoxelSize, open_path
from neurovol.volume.tiff import MOST_CHANNELS


@dataclass(frozen=True)
class JoinedChannels:
    """The channels of the first source, then those of the second, and so on; all of one (z, y, x) shape and dtype."""

    parts: tuple[Source, ...]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(c, z, y, x), the channels of all parts counted."""
        _, z, y, x = self.parts[0].shape
        return sum(part.shape[0] for part in self.parts), z, y, x

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.parts[0].dtype

    @property
    def voxel_size_um(self) -> VoxelSize | None:
        """(z, y, x) in µm, as the first part says that says it at all."""
        return next((part.voxel_size_um for part in self.parts if part.voxel_size_um is not None), None)

    @property
    def grain(self) -> Zyx:
        """(z, y, x), the largest of the parts' along each axis."""
        return zyx(max(along) for along in zip(*(part.grain for part in self.parts), strict=True))

    def read(self, box: Box, channels: tuple[int, ...], out: NDArray[Any] | None = None) -> NDArray[Any]:
        """(c, z, y, x) of a box; a part's own Failure where it cannot be read."""
        out = np.empty((len(channels), *box.shape), self.dtype) if out is None else out
        owners = [(part, c) for part in self.parts for c in range(part.shape[0])]
        done = 0
        for part, run in groupby((owners[c] for c in channels), key=lambda owner: owner[0]):
            wanted = tuple(c for _, c in run)  # neighbours of one part in one call: they may lie in one file
            part.read(box, wanted, out[done : done + len(wanted)])
            done += len(wanted)
        return out

    def identity(self) -> dict[str, Any]:
        """What each part's content depends on, in their order."""
        parts = [part.identity() for part in self.parts]
        kinds = ", ".join(dict.fromkeys(part["kind"] for part in parts))
        return {"kind": f"channels of {len(parts)} sources ({kinds})", "sources": parts}


def join_channels(paths: Sequence[Path]) -> JoinedChannels:
    """The sources at these paths as one; UserError where they cannot be channels of the same voxels."""
    parts = tuple(map(open_path, paths))
    if parts[0].shape[1] == 1 and len(parts) > MOST_CHANNELS:
        raise UserError(
            f"{paths[0]}, {paths[1]}, …: {len(paths)} sources of one plane each, which would be as many channels; "
            f"if they are z-slices, give the folder that holds them as the one source"
        )
    for path, part in zip(paths[1:], parts[1:], strict=True):
        _check_same_voxels(paths[0], parts[0], path, part)
    _check_voxel_sizes(paths, parts)
    return JoinedChannels(parts)


def _check_same_voxels(first: Path, one: Source, path: Path, other: Source) -> None:
    if one.shape[1:] != other.shape[1:]:
        raise UserError(
            f"{first} has {one.shape[1:]} voxels (z, y, x), {path} has {other.shape[1:]}, but the sources of one "
            f"sample are its channels and must be of one shape; export them alike, or make them two samples"
        )
    if one.dtype != other.dtype:
        raise UserError(
            f"{first} has voxels of {one.dtype}, {path} of {other.dtype}, but the sources of one sample must be of one "
            f"type; export them alike, or make them two samples"
        )


def _check_voxel_sizes(paths: Sequence[Path], parts: Sequence[Source]) -> None:
    """Of those that tell theirs."""
    told = [(path, part.voxel_size_um) for path, part in zip(paths, parts, strict=True) if part.voxel_size_um]
    for path, size in told[1:]:
        first, one = told[0]
        if any(abs(a / b - 1) > VOXEL_SIZE_TOLERANCE for a, b in zip(size, one, strict=True)):
            raise UserError(
                f"{first} tells voxels of {_rounded(one)} µm (z, y, x), {path} of {_rounded(size)}, but the sources of "
                f"one sample may differ by 1 % at most; correct their metadata, or make them two samples"
            )


def _rounded(size: VoxelSize) -> list[float]:
    return [round(s, 6) for s in size]
