"""The record of a volume in the store: its geometry, and whether it is complete; durable writes of it."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neurovol.errors import UserError
from neurovol.geometry import Box, Zyx, ceil_div, zyx
from neurovol.levels import level_shard

VoxelSize = tuple[float, float, float]


@dataclass(frozen=True)
class VolumeInfo:
    """A volume of the store, as its own record tells it; shapes in z, y, x."""

    path: Path
    shape: Zyx
    channels: int | None  # None: the arrays have no channel axis
    dtype: np.dtype[Any]
    voxel_size_um: VoxelSize
    chunk: Zyx
    full_shard: Zyx  # before it is fitted to a level
    factors: tuple[Zyx, ...]  # by what each level is coarser than the one below, from level 1 on
    fused: int  # of how many levels beyond 0 a shard is the part of one level-0 shard, so that both are made at once
    sparse: bool  # a shard missing outside the recorded boxes is all zero; otherwise it is an error
    complete: bool
    attributes: dict[str, Any]

    @property
    def levels(self) -> int:
        return 1 + len(self.factors)

    def level_shape(self, level: int) -> Zyx:
        """(z, y, x) of a level."""
        shape = self.shape
        for factors in self.factors[:level]:
            shape = ceil_div(shape, factors)
        return shape

    def shard(self, level: int) -> Zyx:
        """What lies in one file of a level, z, y, x; all channels."""
        return level_shard(self.shape, self.chunk, self.full_shard, self.factors, level, self.fused)

    def must_exist(self, level: int, key: Zyx) -> bool:
        """Whether a missing shard is an error: of a sparse volume only where its recorded `boxes` were written."""
        if not self.sparse:
            return True
        shard = Box(key, zyx(k + 1 for k in key)).upsampled(self.shard(level))
        boxes = [Box.from_pairs(pairs) for pairs in self.attributes.get("boxes", ())]
        for factors in self.factors[:level]:
            boxes = [box.downsampled(factors) for box in boxes]
        return any(box.intersect(shard).size for box in boxes)

    def shard_file(self, level: int, key: Zyx) -> Path:
        """The file of the shard at that grid position."""
        channel = () if self.channels is None else (0,)
        return self.path.joinpath(str(level), "c", *map(str, (*channel, *key)))

    @property
    def geometry(self) -> dict[str, Any]:
        """What must agree for a half-written volume to be continued, JSON-able."""
        return {
            "shape": list(self.shape),
            "channels": self.channels,
            "dtype": self.dtype.name,
            "voxel_size_um": list(self.voxel_size_um),
            "chunk": list(self.chunk),
            "shard": list(self.full_shard),
            "factors": [list(f) for f in self.factors],
            "fused": self.fused,
            "sparse": self.sparse,
        }


def open_volume(path: Path, allow_incomplete: bool = False) -> VolumeInfo:
    """What lies at a path; a UserError where it is no volume of ours, or incomplete and that is not asked for."""
    path = Path(path)
    try:
        ours = read_group(path)["neurovol"]
        geometry = ours["geometry"]
        z, y, x = geometry["voxel_size_um"]
        info = VolumeInfo(
            path,
            zyx(geometry["shape"]),
            geometry["channels"],
            np.dtype(geometry["dtype"]),
            (z, y, x),
            zyx(geometry["chunk"]),
            zyx(geometry["shard"]),
            tuple(zyx(f) for f in geometry["factors"]),
            geometry["fused"],
            geometry["sparse"],
            ours["complete"],
            ours["attributes"],
        )
    except FileNotFoundError:
        raise UserError(f"{path}: there is no volume; run the stage that makes it first") from None
    except (KeyError, TypeError, ValueError, NotADirectoryError):
        raise UserError(f"{path}: this is no volume made by neurovol; choose another path or move it away") from None
    if not info.complete and not allow_incomplete:
        raise UserError(f"{path}: is incomplete, the stage that makes it has not finished; run that stage again")
    return info


def shard_size(file: Path) -> int:
    """Bytes of a shard's file, 0 where there is none."""
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def read_group(folder: Path) -> dict[str, Any]:
    attributes = json.loads((folder / "zarr.json").read_text(encoding="utf-8"))["attributes"]
    if not isinstance(attributes, dict):
        raise TypeError("attributes")
    return attributes


def write_group(folder: Path, attributes: dict[str, Any]) -> None:
    """A zarr v3 group's metadata, durable and whole or not at all."""
    text = json.dumps({"zarr_format": 3, "node_type": "group", "attributes": attributes}, indent=2)
    write_text(folder / "zarr.json", text)


def write_text(file: Path, text: str) -> None:
    """A small file, durable and whole or not at all."""
    write_bytes(file, text.encode("utf-8"))


def write_bytes(file: Path, content: bytes, named: bool = True) -> None:
    """As write_text; what it leaves where it is killed, `sweep_leftovers` removes.

    Not `named`, its name becomes durable by `sync_folders`, of many files in the time of one.
    """
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        _sync(partial)
        partial.replace(file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    if named:
        sync_folders([file.parent])


def sweep_leftovers(file: Path) -> None:
    """Remove what writes of a file left that were killed; no one may be writing it."""
    for leftover in file.parent.glob(f"{glob.escape(file.name)}.*.partial"):
        leftover.unlink()


def sync_to_disk(files: Sequence[Path], top: Path) -> None:
    """fsync `files`, and every folder from theirs up to `top`: a name lasts as its folder does."""
    for file in files:
        _sync(file)
    sync_folders({top, *(parent for file in files for parent in file.parents if parent.is_relative_to(top))})


def sync_folders(folders: Iterable[Path]) -> None:
    """Make the names in some folders durable, the deepest first."""
    for folder in sorted(folders, reverse=True):
        _sync(folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
