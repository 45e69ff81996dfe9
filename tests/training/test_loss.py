from math import log

import pytest
import torch
from torch import nn

from neurovol.training.loss import pixel_loss, voxel_loss, weighted_bce


def logit(p: float) -> float:
    return log(p / (1 - p))


def test_annotated_voxels_weigh_one_and_pseudo_labelled_ones_alpha():
    logits = torch.tensor([logit(0.8), logit(0.4), logit(0.9)])
    target = torch.tensor([1.0, 1.0, 0.0])
    weight = torch.tensor([1.0, 0.3, 0.0])
    by_hand = (1.0 * -log(0.8) + 0.3 * -log(0.4)) / 1.3
    assert weighted_bce(logits, target, weight).item() == pytest.approx(by_hand, rel=1e-5)


def test_soft_targets_by_hand():
    loss = weighted_bce(torch.tensor([logit(0.7)]), torch.tensor([0.6]), torch.tensor([0.3]))
    assert loss.item() == pytest.approx(-(0.6 * log(0.7) + 0.4 * log(0.3)), rel=1e-5)


def test_weights_of_zero_give_zero_loss_and_zero_gradient():
    logits = torch.tensor([5.0, -80.0], requires_grad=True)
    loss = weighted_bce(logits, torch.tensor([0.0, 1.0]), torch.zeros(2))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.tolist() == [0, 0]


def test_a_voxel_without_weight_has_no_gradient():
    logits = torch.zeros(2, requires_grad=True)
    weighted_bce(logits, torch.ones(2), torch.tensor([1.0, 0.0])).backward()
    assert logits.grad.tolist() == [-0.5, 0]


def test_bf16_logits_are_summed_in_fp32():
    loss = weighted_bce(torch.zeros(1000, dtype=torch.bfloat16), torch.ones(1000), torch.ones(1000))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(log(2), rel=1e-5)


def test_a_network_that_knows_nothing_loses_log_2_per_voxel_and_pixel():
    class Undecided(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.zeros(x.shape[0], 2) if x.ndim == 4 else torch.zeros(x.shape)

    voxels = (torch.rand(2, 1, 3, 4, 5), torch.ones(2, 3, 4, 5), torch.full((2, 3, 4, 5), 0.3))
    assert voxel_loss(Undecided(), voxels).item() == pytest.approx(log(2))
    pixels = (torch.rand(6, 1, 32, 32), torch.tensor([0, 1] * 3))
    assert pixel_loss(Undecided(), pixels).item() == pytest.approx(log(2))
