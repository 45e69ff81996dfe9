"""A U-Net of random weights over a phantom, as benchmarks cover it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurovol.geometry import BlockGrid, Box, Zyx, ceil_div
from neurovol.networks.checkpoint import Meta, save_checkpoint
from neurovol.networks.normalise import RULE, Normalisation
from neurovol.networks.precision import Precision
from neurovol.networks.unet3d import UNet3D, UNet3DKernel, UNet3DSpec
from neurovol.stages.cover import Cover
from neurovol.volume.omezarr import VolumeReader, VolumeWriter, create_volume
from neurovol.volume.phantom import PhantomSource

CHUNK, VOXEL_SIZE_UM = (32, 64, 64), (2.0, 0.88, 0.88)
NORMALISATION = Normalisation((100.0,), (1000.0,))
FP32 = Precision("fp32", True)
TILE = (128, 256, 256)  # of a larger image; phantoms are drawn slowly


def image_of(shape: Zyx) -> NDArray[Any]:
    """Raw uint16 (1, z, y, x): a phantom, side by side with itself where it is larger than TILE."""
    tile = tuple(min(pair) for pair in zip(shape, TILE, strict=True))
    voxels = PhantomSource(tile, 1).read(Box.of_shape(tile))
    z, y, x = shape
    return np.tile(voxels, (1, *ceil_div(shape, tile)))[:, :z, :y, :x]


def unet_cover(folder: Path, shape: Zyx, shard: Zyx, precision: Precision = FP32, device: str = "cpu") -> Cover:
    """The task of a block; image, checkpoint and result lie in the folder."""
    image, result, spec = folder / "image", folder / "result", UNet3DSpec()
    for path, channels, dtype in ((image, 1, "uint16"), (result, None, "uint8")):
        create_volume(path, shape=shape, channels=channels, dtype=dtype, voxel_size_um=VOXEL_SIZE_UM, chunk=CHUNK,
                      shard=shard, factors=[])  # fmt: skip
    whole, voxels, writer = Box.of_shape(shape), image_of(shape), VolumeWriter(str(image))
    for block in BlockGrid(shape, shard, shard):
        writer.write(block.write, voxels[(slice(None), *block.write.slices)])
    save_checkpoint(
        folder / "unet3d", "unet3d", spec.to_json(), UNet3D(spec).state_dict(), Meta(VOXEL_SIZE_UM, 1, RULE, "0" * 16)
    )
    kernel = UNet3DKernel(str(folder / "unet3d"), NORMALISATION, precision.dtype, precision.channels_last, device)
    reader, writer = VolumeReader(str(image), allow_incomplete=True), VolumeWriter(str(result))
    return Cover(reader, kernel, writer, shape, (whole,), shard, spec.halo, spec.stride)
