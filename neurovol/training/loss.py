"""What training minimises."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def weighted_bce(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Binary cross-entropy of logits, weighted by voxel and divided by the sum of weights; 0 where that is 0.

    All three of one shape; computed in fp32. Weights are 1 on annotated voxels, α on pseudo-labelled
    ones, 0 elsewhere: Castelli et al., Semantic Segmentation of Neuronal Bodies in Fluorescence
    Microscopy Using a 2D+3D CNN Training Strategy with Sparsely Annotated Data, LOD 2020.
    """
    loss = F.binary_cross_entropy_with_logits(logits.float(), target.float(), reduction="none")
    return (loss * weight).sum() / weight.sum().clamp(min=torch.finfo(torch.float32).tiny)


def voxel_loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """Of a U-Net on (image (B, C, Z, Y, X), target (B, Z, Y, X), weight (B, Z, Y, X))."""
    image, target, weight = batch
    return weighted_bce(model(image)[:, 0], target, weight)


def pixel_loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """Of a 2D CNN on (patches (N, C, 32, 32), class (N,) 0 background, 1 neuron): cross-entropy."""
    patches, label = batch
    return F.cross_entropy(model(patches).float(), label)
