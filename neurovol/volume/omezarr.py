"""Volumes in the store: sharded OME-Zarr 0.5 (zarr v3) with a pyramid, a crc32c on every chunk and shard index.

A volume is created incomplete, written shard by shard, and marked complete last; its group's
metadata carries both our own record ("neurovol") and, once complete, what viewers read ("ome").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from neurovol.errors import Failure, UserError
from neurovol.geometry import Zyx, ceil_div, zyx
from neurovol.volume import omemeta
from neurovol.volume.shardfile import Codec, codec_for
from neurovol.volume.shards import VolumeReader, VolumeWriter
from neurovol.volume.stored import (
    VolumeInfo,
    VoxelSize,
    open_volume,
    read_group,
    shard_size,
    sync_to_disk,
    write_group,
)

__all__ = [
    "VolumeInfo",
    "VolumeReader",
    "VolumeWriter",
    "create_volume",
    "downsampling_of",
    "finish_volume",
    "open_volume",
    "register_label",
    "sweep_partial",
]


def create_volume(
    path: Path,
    *,
    shape: Zyx,
    channels: int | None,
    dtype: Any,
    voxel_size_um: VoxelSize,
    chunk: Zyx,
    shard: Zyx,
    factors: Sequence[Zyx],
    fused: int = 0,
    sparse: bool = False,
    codec: Literal["auto", "lz4", "zstd"] = "auto",
) -> None:
    """Create an incomplete volume, (c, z, y, x) or, where `channels` is None, (z, y, x); or take one up again.

    A volume of the same geometry that is there already is kept with all its shards; any other one,
    or another thing at that path, is a UserError. Of the first `fused` levels above 0 a shard is the part of
    one shard of level 0 (see levels.fused_levels). With `sparse`, shards absent outside the boxes written mean zeros.
    """
    info = VolumeInfo(
        Path(path),
        shape,
        channels,
        np.dtype(dtype),
        voxel_size_um,
        chunk,
        shard,
        tuple(factors),
        fused,
        sparse,
        False,
        {},
    )
    try:
        if info.path.exists() and any(found.suffix != ".partial" for found in info.path.iterdir()):
            _check_same(info)
        else:
            info.path.mkdir(parents=True, exist_ok=True)
            write_group(info.path, {"neurovol": {"complete": False, "geometry": info.geometry, "attributes": {}}})
        for level in range(info.levels):
            if not (info.path / str(level) / "zarr.json").exists():
                _create_level(info, level, codec_for(info.dtype, codec))
    except OSError as error:
        raise UserError(f"{info.path}: the volume cannot be created there: {error.strerror}") from None


def _check_same(info: VolumeInfo) -> None:
    if not (info.path / "zarr.json").exists():
        raise UserError(f"{info.path}: is no volume and holds other things; choose another path or move it away")
    there = open_volume(info.path, allow_incomplete=True).geometry
    wrong = [f"{k} {there[k]} instead of {v}" for k, v in info.geometry.items() if there[k] != v]
    if wrong:
        raise UserError(
            f"{info.path}: holds another volume already, with {', '.join(wrong)}; nothing is overwritten: "
            f"redo the stage, or move the old volume away"
        )


def _create_level(info: VolumeInfo, level: int, codec: Codec) -> None:
    one = () if info.channels is None else (1,)
    all_channels = () if info.channels is None else (info.channels,)
    zarr.create_array(
        store=str(info.path / str(level)),
        shape=(*all_channels, *info.level_shape(level)),
        chunks=(*one, *info.chunk),
        shards=(*all_channels, *info.shard(level)),
        dtype=info.dtype,
        filters=None,
        compressors=[_compressor(codec), Crc32cCodec()],
        fill_value=0,
        dimension_names=(*("c" for _ in one), "z", "y", "x"),
        zarr_format=3,
    )
    sync_to_disk([info.path / str(level) / "zarr.json"], info.path)


def _compressor(codec: Codec) -> Any:
    if codec.name == "zstd":
        return ZstdCodec(level=codec.level)
    return BloscCodec(
        cname=codec.within,
        clevel=codec.level,
        shuffle=codec.shuffle,
        typesize=codec.itemsize,
        blocksize=codec.blocksize,
    )


def finish_volume(
    path: Path,
    *,
    name: str,
    attributes: dict[str, Any],
    omero: Sequence[tuple[float, float]] | None = None,
    label: bool = False,
    origin_um: VoxelSize = (0.0, 0.0, 0.0),
) -> None:
    """Write the OME metadata and the completion mark, in one atomic step and last of all.

    `attributes` are JSON-able and come back in VolumeInfo.attributes; `omero` gives (start, end) of
    the display window per channel, `origin_um` where the first voxel lies. Failure where a shard of a volume
    that is not sparse is missing.
    """
    info = replace(open_volume(path, allow_incomplete=True), attributes=attributes)
    _check_all_there(info)
    how, has_channels = "max" if label else "mean", info.channels is not None
    ome: dict[str, Any] = {
        "version": omemeta.VERSION,
        "multiscales": omemeta.multiscales(name, info.voxel_size_um, info.factors, has_channels, how, origin_um),
    }
    if omero is not None:
        ome["omero"] = omemeta.omero(omero, int(np.iinfo(info.dtype).max))
    if label:
        ome["image-label"] = omemeta.image_label()
    ours = {"complete": True, "geometry": info.geometry, "attributes": attributes}
    write_group(info.path, {"ome": ome, "neurovol": ours})


def _check_all_there(info: VolumeInfo) -> None:
    for level in range(info.levels):
        counts = ceil_div(info.level_shape(level), info.shard(level))
        keys = (zyx(k) for k in product(*map(range, counts)))
        missing = [k for k in keys if info.must_exist(level, k) and not shard_size(info.shard_file(level, k))]
        if missing:
            file = info.shard_file(level, missing[0])
            raise Failure(
                f"{info.path}: {len(missing)} of the shards of level {level} are missing or empty, the first is "
                f"{file}; the volume is not marked complete"
            )


def downsampling_of(path: Path) -> Literal["mean", "max"]:
    """How the levels of a finished volume were made."""
    kind = read_group(path)["ome"]["multiscales"][0]["type"]
    return "max" if kind == "max" else "mean"


def register_label(image: Path, name: str) -> None:
    """List the labels at <image>/labels/<name> in the image's labels group, where viewers look for them."""
    folder = Path(image) / "labels"
    try:
        names = list(read_group(folder)["ome"]["labels"])
    except FileNotFoundError:
        names = []
    if name not in names:
        write_group(folder, {"ome": {"version": omemeta.VERSION, "labels": sorted([*names, name])}})


def sweep_partial(path: Path) -> None:
    """Remove what writes that were killed left behind; no one may be writing to the volume."""
    for leftover in sorted(Path(path).rglob("*.partial")):
        leftover.unlink(missing_ok=True)
