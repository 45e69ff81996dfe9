"""The 3D U-Net that segments: its shape, what follows from it, and the kernel that runs it.

Çiçek et al., 3D U-Net: Learning Dense Volumetric Segmentation from Sparse Annotation, MICCAI 2016,
with half the channels and one resolution fewer by default.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from neurovol.geometry import Zyx, round_up, zyx
from neurovol.networks.checkpoint import checkpoint_stamp, load_checkpoint
from neurovol.networks.normalise import Normalisation
from neurovol.networks.precision import DType, Precision

# Read voxels beyond which a larger window saves little. By CPU time on two cores of an EPYC (avx512_bf16, one thread,
# bf16), a voxel read costs 0.34 µs in a read box of 80 × 112 × 112, 0.43 in 112 × 176 × 176, 0.45 in 112 × 304 × 304;
# with halos, a voxel of a block of 128 × 256 × 256 costs in windows of
#   32 × 64 × 64: 2.6 µs    64 × 64 × 64: 2.0    64 × 128 × 128: 1.4    64 × 256 × 256: 1.1    128 × 256 × 256: 0.9
# and twice the memory of the last would save another seventh.
MOST_READ = 2**24


def reach_along(pooling: Sequence[int]) -> int:
    """How far along one axis an output voxel sees, to the farther side, at the worst place on the stride.

    Follows the voxels that one output depends on, as an interval, back from the output to the input:
    two 3-convolutions widen it by 2, an upsampling divides it, a pooling multiplies it.

    >>> reach_along([2, 2]), reach_along([1, 2]), reach_along([])
    (23, 13, 2)
    """
    farthest = 0
    for place in range(prod(pooling)):
        low = high = place
        for factor in pooling:
            low, high = (low - 2) // factor, (high + 2) // factor
        low, high = low - 2, high + 2
        for factor in reversed(pooling):
            low, high = low * factor - 2, high * factor + factor - 1 + 2
        farthest = max(farthest, place - low, high - place)
    return farthest


@dataclass(frozen=True)
class UNet3DSpec:
    """What determines the network's shape; `stride`, `reach` and `halo` (z, y, x, voxels) follow from it.

    >>> UNet3DSpec().stride, UNet3DSpec().reach, UNet3DSpec().halo, UNet3DSpec().flops_per_voxel
    ((4, 4, 4), (23, 23, 23), (24, 24, 24), 94016)
    """

    channels: int = 1
    base: int = 16
    pooling: tuple[Zyx, ...] = ((2, 2, 2), (2, 2, 2))

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels per resolution, the finest first."""
        return tuple(self.base * 2**level for level in range(len(self.pooling) + 1))

    @property
    def stride(self) -> Zyx:
        return zyx(prod(factors) for factors in zip(*self.pooling, strict=True))

    @property
    def reach(self) -> Zyx:
        return zyx(reach_along(factors) for factors in zip(*self.pooling, strict=True))

    @property
    def halo(self) -> Zyx:
        """The smallest halo at which windows do not show."""
        return zyx(round_up(r, s) for r, s in zip(self.reach, self.stride, strict=True))

    @property
    def flops_per_voxel(self) -> int:
        """Multiplications and additions of a forward pass, per voxel of the input."""
        inputs = (self.channels, *self.widths)
        products, voxels = float(self.base), 1.0  # the head; voxels of a resolution per voxel of the input
        for level, (before, width) in enumerate(zip(inputs, self.widths, strict=False)):
            voxels /= prod(self.pooling[level - 1]) if level else 1
            upward = (
                (27 * 3 + 2) * width**2 if level < len(self.pooling) else 0
            )  # merge: 2 w to w to w; transposed: 2 w to w
            products += voxels * (27 * (before * width + width**2) + upward)
        return round(2 * products)

    @property
    def weight_bytes(self) -> int:
        """Of the weights in fp32: as loaded, in the model, and as oneDNN lays them out."""
        inputs = (self.channels, *self.widths)
        numbers = sum(27 * (before + width) * width for before, width in zip(inputs, self.widths, strict=False))
        for width, factors in zip(self.widths, self.pooling, strict=False):
            numbers += (27 * 3 + 2 * prod(factors)) * width**2
        return 3 * 4 * numbers

    def working_bytes(self, read: Zyx, precision: Precision) -> int:
        """Peak bytes of the kernel for a read box, beside the raw voxels and the weights.

        Counted at each resolution: the skips held for later, and there what goes into two convolutions and comes out
        of each; on the way up two tensors as concatenated, the result of that, and what came from below.
        """
        item = 4 if precision.dtype == "fp32" else 2
        sizes = [prod(read)]
        for factors in self.pooling:
            sizes.append(sizes[-1] // prod(factors))
        inputs = (self.channels, *self.widths)
        skips, peak = 0, 0
        for level, (before, width) in enumerate(zip(inputs, self.widths, strict=False)):
            down = (before + 2 * width) * sizes[level]
            up = 0 if level == len(self.pooling) else 4 * width * sizes[level] + 2 * width * sizes[level + 1]
            peak = max(peak, skips + down, skips + up)
            skips += width * sizes[level]
        if not precision.channels_last:  # oneDNN computes in a layout of its own, and copies
            peak += self.base * prod(read)
        return item * peak + prod(read) * self.channels * (4 + item)  # normalised, and as the network takes it

    def pays(self, read: Zyx) -> bool:
        """Whether a read box is no larger than is worth its memory."""
        return prod(read) <= MOST_READ

    def to_json(self) -> dict[str, Any]:
        return {"channels": self.channels, "base": self.base, "pooling": [list(p) for p in self.pooling]}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> UNet3DSpec:
        return cls(int(fields["channels"]), int(fields["base"]), tuple(zyx(p) for p in fields["pooling"]))


def _convolution(before: int, width: int) -> list[nn.Module]:
    return [nn.Conv3d(before, width, 3, padding=1, bias=False), nn.BatchNorm3d(width), nn.ReLU(inplace=True)]


class UNet3D(nn.Module):
    """(B, C, Z, Y, X) to logits (B, 1, Z, Y, X); Z, Y, X are multiples of the spec's stride."""

    def __init__(self, spec: UNet3DSpec) -> None:
        super().__init__()
        self.spec = spec
        inputs = (spec.channels, *spec.widths)
        self.down = nn.ModuleList(
            nn.Sequential(*_convolution(before, width), *_convolution(width, width))
            for before, width in zip(inputs, spec.widths, strict=False)
        )
        self.up = nn.ModuleList(
            nn.ConvTranspose3d(2 * width, width, factors, stride=factors)
            for width, factors in zip(spec.widths, spec.pooling, strict=False)
        )
        self.merge = nn.ModuleList(
            nn.Sequential(*_convolution(2 * width, width), *_convolution(width, width)) for width in spec.widths[:-1]
        )
        self.head = nn.Conv3d(spec.base, 1, 1)

    def forward(self, x_BCZYX: Tensor) -> Tensor:
        skips = []
        x = x_BCZYX
        for factors, down in zip(self.spec.pooling, self.down, strict=False):
            skips.append(down(x))
            x = F.max_pool3d(skips[-1], factors)
        x = self.down[-1](x)
        for up, merge in zip(reversed(self.up), reversed(self.merge), strict=True):
            x = merge(torch.cat([skips.pop(), up(x)], dim=1))
        logits: Tensor = self.head(x)
        return logits


def fused(model: UNet3D) -> UNet3D:
    """The model in eval mode with each batch norm folded into the convolution before it, in place."""
    model.eval()
    for stage in (*model.down, *model.merge):
        layers = cast(nn.Sequential, stage)
        for i, (layer, after) in enumerate(pairwise(list(layers))):
            if isinstance(layer, nn.Conv3d) and isinstance(after, nn.BatchNorm3d):
                layers[i], layers[i + 1] = fuse_conv_bn_eval(layer, after), nn.Identity()
    return model


@dataclass(frozen=True)
class UNet3DKernel:
    """A raw window to the probability of neuron, meaningful inside the halo."""

    checkpoint: str  # the model's folder
    normalisation: Normalisation
    precision: DType = "fp32"
    channels_last: bool = True
    device: str = "cpu"

    version: ClassVar[int] = 1

    def __call__(self, raw_CZYX: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """(c, z, y, x) integers of a read box on the stride to float32 (z, y, x) of the same box."""
        layout = Precision(self.precision, self.channels_last)
        model = _loaded(self.checkpoint, checkpoint_stamp(self.checkpoint), layout, self.device)
        with torch.inference_mode():
            image = torch.from_numpy(self.normalisation.apply(raw_CZYX))[None]
            p_ZYX: npt.NDArray[np.float32] = (
                model(layout.input(image, self.device))[0, 0].float().sigmoid_().contiguous().cpu().numpy()
            )
        return p_ZYX


@lru_cache(maxsize=2)
def _loaded(folder: str, stamp: tuple[int, ...], layout: Precision, device: str) -> nn.Module:
    """The model of a checkpoint, once per process; `stamp` changes when the checkpoint does."""
    checkpoint = load_checkpoint(Path(folder), "unet3d")
    model = UNet3D(UNet3DSpec.from_json(checkpoint.network))
    model.load_state_dict(checkpoint.state)
    return layout.for_inference(fused(model), device)
