"""The light 2D CNN that labels what nobody labelled: the lab's published network, patch-wise and dense.

Convolution 5×5/32 – ReLU – max-pool 2 – 3×3/64 – ReLU – max-pool 2 – 3×3/64 – ReLU – two fully
connected layers with ReLU and dropout – 2 classes; valid convolutions. It classifies one pixel from
the 32 × 32 patch around it: pixel p from [p - 16, p + 16). Mazzamuto et al., Automatic Segmentation of Neurons in
3D Samples of Human Brain Cortex, EvoApplications 2018.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neurovol.geometry import Zyx
from neurovol.networks.checkpoint import checkpoint_stamp, load_checkpoint
from neurovol.networks.normalise import Normalisation
from neurovol.networks.precision import DType, Precision

PATCH = 32

# Pixels of a slice, and voxels, beyond which a larger window is no faster. By CPU time on an EPYC, one thread, a voxel
# costs in windows of side
#   32: 6.2 µs    64: 4.1    128: 3.7    256: 4.0    512: 4.6
# for larger ones leave the processor's caches.
MOST_PIXELS, MOST_READ = 40_000, 2**24


@dataclass(frozen=True)
class CNN2DSpec:
    """What determines the network's shape; `reach`, `halo` and `stride` are z, y, x in voxels."""

    channels: int = 1
    hidden: int = 128
    dropout: float = 0.5

    patch: ClassVar[int] = PATCH
    reach: ClassVar[Zyx] = (0, PATCH // 2, PATCH // 2)
    halo: ClassVar[Zyx] = reach
    stride: ClassVar[Zyx] = (1, 1, 1)

    @property
    def flops_per_voxel(self) -> int:
        """Multiplications and additions per pixel, dense."""
        products = 25 * self.channels * 32 + 9 * 32 * 64 + 9 * 64 * 64 + 16 * 64 * self.hidden
        return 2 * (products + self.hidden**2 + 2 * self.hidden)

    @property
    def weight_bytes(self) -> int:
        """Of the weights in fp32: as loaded, in the model, and as oneDNN lays them out."""
        numbers = 25 * self.channels * 32 + 9 * 32 * 64 + 9 * 64 * 64 + 16 * 64 * self.hidden
        return 3 * 4 * (numbers + self.hidden**2 + 2 * self.hidden)

    def working_bytes(self, read: Zyx, precision: Precision) -> int:
        """Peak bytes of the kernel for a read box, beside the raw voxels and the weights: of one slice at a time."""
        pixels, item = read[1] * read[2], 4 if precision.dtype == "fp32" else 2
        # a layer's input, output, and that rectified; a pooling's input, output, and where each maximum was: 8 bytes
        layers = item * max(32 + 2 * 64, 64 + 2 * self.hidden, 3 * self.hidden)
        pooling = (2 * item + 8) * 64
        return pixels * max(layers, pooling) + read[0] * pixels * 4 * (self.channels + 1)

    def pays(self, read: Zyx) -> bool:
        """Whether a read box is no larger than is worth its memory."""
        return read[1] * read[2] <= MOST_PIXELS and read[0] * read[1] * read[2] <= MOST_READ

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> CNN2DSpec:
        return cls(int(fields["channels"]), int(fields["hidden"]), float(fields["dropout"]))


class CNN2D(nn.Module):
    """Logits of background and neuron: of patches (`forward`), or of every pixel of an image (`dense`)."""

    def __init__(self, spec: CNN2DSpec) -> None:
        super().__init__()
        self.spec = spec
        self.conv1 = nn.Conv2d(spec.channels, 32, 5)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.conv3 = nn.Conv2d(64, 64, 3)
        self.full1 = nn.Linear(64 * 4 * 4, spec.hidden)
        self.full2 = nn.Linear(spec.hidden, spec.hidden)
        self.full3 = nn.Linear(spec.hidden, 2)

    def forward(self, patches_NCYX: Tensor) -> Tensor:
        """(N, C, 32, 32) to logits (N, 2) of each patch's pixel [16, 16]."""
        x = F.max_pool2d(F.relu(self.conv1(patches_NCYX)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.conv3(x)).flatten(1)
        x = F.dropout(F.relu(self.full1(x)), self.spec.dropout, self.training)
        x = F.dropout(F.relu(self.full2(x)), self.spec.dropout, self.training)
        logits: Tensor = self.full3(x)
        return logits

    def dense(self, image_NCYX: Tensor) -> Tensor:
        """(N, C, H, W) to logits (N, 2, H - 31, W - 31): pixel [0, 0] of them belongs to pixel [16, 16].

        Equal to `forward` on every patch: poolings step by one pixel, and all that follows them is
        dilated instead (à trous; Giusti et al., Fast image scanning with deep max-pooling CNNs, 2013).
        """
        x = F.max_pool2d(F.relu(self.conv1(image_NCYX)), 2, stride=1)
        x = F.relu(F.conv2d(x, self.conv2.weight, self.conv2.bias, dilation=2))
        x = F.max_pool2d(x, 2, stride=1, dilation=2)
        x = F.relu(F.conv2d(x, self.conv3.weight, self.conv3.bias, dilation=4))
        x = F.relu(F.conv2d(x, _as_convolution(self.full1, 4), self.full1.bias, dilation=4))
        x = F.relu(F.conv2d(x, _as_convolution(self.full2, 1), self.full2.bias))
        return F.conv2d(x, _as_convolution(self.full3, 1), self.full3.bias)


def _as_convolution(layer: nn.Linear, side: int) -> Tensor:
    return layer.weight.view(layer.out_features, -1, side, side)


@dataclass(frozen=True)
class CNN2DKernel:
    """A raw window to the probability of neuron, slice by slice, with a checkpoint's prior correction."""

    checkpoint: str  # the model's folder
    normalisation: Normalisation
    precision: DType = "fp32"
    channels_last: bool = True
    device: str = "cpu"

    version: ClassVar[int] = 1

    def __call__(self, raw_CZYX: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """(c, z, y, x) integers of a read box to float32 (z, y, x) of the same box; 0 within the halo."""
        layout = Precision(self.precision, self.channels_last)
        model, log_prior_odds = _loaded(self.checkpoint, checkpoint_stamp(self.checkpoint), layout, self.device)
        image_ZCYX = torch.from_numpy(self.normalisation.apply(raw_CZYX)).transpose(0, 1)
        result = np.zeros(raw_CZYX.shape[1:], np.float32)
        with torch.inference_mode():
            for z, slice_CYX in enumerate(image_ZCYX):  # one at a time: its activations are 300 × its size
                logits = model.dense(layout.input(slice_CYX[None], self.device))[0].float()
                p_YX = torch.sigmoid(logits[1] - logits[0] + log_prior_odds).cpu().numpy()
                result[z, 16 : 16 + p_YX.shape[0], 16 : 16 + p_YX.shape[1]] = p_YX
        return result


@lru_cache(maxsize=2)
def _loaded(folder: str, stamp: tuple[int, ...], layout: Precision, device: str) -> tuple[CNN2D, float]:
    """The model of a checkpoint, once per process; `stamp` changes when the checkpoint does."""
    checkpoint = load_checkpoint(Path(folder), "cnn2d")
    model = CNN2D(CNN2DSpec.from_json(checkpoint.network))
    model.load_state_dict(checkpoint.state)
    layout.for_inference(model, device)
    return model, checkpoint.meta.log_prior_odds
