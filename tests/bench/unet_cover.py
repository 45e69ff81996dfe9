"""A U-Net of random weights over a phantom, as the block engine's benchmark covers it."""

from __future__ import annotations

from pathlib import Path

from neurovol.geometry import Box, Zyx
from neurovol.networks.checkpoint import Meta, save_checkpoint
from neurovol.networks.normalise import RULE, Normalisation
from neurovol.networks.unet3d import UNet3D, UNet3DKernel, UNet3DSpec
from neurovol.stages.cover import Cover
from neurovol.volume.omezarr import VolumeReader, VolumeWriter, create_volume
from neurovol.volume.phantom import PhantomSource

CHUNK, VOXEL_SIZE_UM = (32, 64, 64), (2.0, 0.88, 0.88)


def unet_cover(folder: Path, shape: Zyx, shard: Zyx) -> Cover:
    """The task of a block; image, checkpoint and result lie in the folder."""
    image, result, spec = folder / "image", folder / "result", UNet3DSpec()
    for path, channels, dtype in ((image, 1, "uint16"), (result, None, "uint8")):
        create_volume(path, shape=shape, channels=channels, dtype=dtype, voxel_size_um=VOXEL_SIZE_UM, chunk=CHUNK,
                      shard=shard if path == result else shape, factors=[])  # fmt: skip
    whole = Box.of_shape(shape)
    VolumeWriter(str(image)).write(whole, PhantomSource(shape, 1).read(whole))
    save_checkpoint(
        folder / "unet3d", "unet3d", spec.to_json(), UNet3D(spec).state_dict(), Meta(VOXEL_SIZE_UM, 1, RULE, "0" * 16)
    )
    kernel = UNet3DKernel(str(folder / "unet3d"), Normalisation((100.0,), (1000.0,)), "fp32", True)
    reader, writer = VolumeReader(str(image), allow_incomplete=True), VolumeWriter(str(result))
    return Cover(reader, kernel, writer, shape, (whole,), shard, spec.halo, spec.stride)
