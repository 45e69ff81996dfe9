import json
import pickle

import pytest
import torch
from torch import nn

from neurovol.errors import UserError
from neurovol.networks.precision import Precision, candidates, choose_precision, unsound_layer


def small() -> nn.Module:
    return nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 1, 1))


def test_fp32_leaves_only_the_layout_to_choose():
    assert candidates("fp32") == (Precision("fp32", True),)
    assert {p.channels_last for p in candidates("auto") if p.dtype == "fp32"} == {True, False}


def test_bf16_wanted_is_bf16_taken():
    assert choose_precision(small, (1, 1, 4, 8, 8), "bf16").dtype == "bf16"


def test_the_fastest_in_the_trial_is_chosen():
    for training in (False, True):
        chosen = choose_precision(small, (1, 1, 4, 8, 8), "auto", training=training)
        assert chosen.trial[chosen.name] == min(chosen.trial.values())


def test_a_trial_leaves_the_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    choose_precision(small, (1, 1, 4, 8, 8), "fp32", training=True)
    assert torch.equal(torch.rand(3), expected)


def test_json_and_pickle_and_back():
    p = Precision("bf16", True, {"bf16 channels_last": 12.5})
    again = Precision.from_json(json.loads(json.dumps(p.to_json())))
    assert again == p
    assert again.trial == p.trial
    assert pickle.loads(pickle.dumps(p)) == p


def test_the_layout_changes_strides_and_no_value():
    image = torch.rand(1, 3, 5, 7, 7)
    laid_out = Precision("fp32", True).lay_out(image)
    assert torch.equal(laid_out, image)
    assert laid_out.is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("planes", [1, 2, 3, 4])
def test_training_is_left_no_precision_that_computes_wrong_gradients(planes):
    def build() -> nn.Module:
        return nn.Conv3d(16, 16, 3, padding=1, bias=False)

    shape = (2, 16, planes, 4, 4)
    chosen = choose_precision(build, shape, "auto", training=True)
    if unsound_layer(Precision("bf16", True), build(), torch.rand(shape)) is not None:
        assert chosen.dtype == "fp32"
        with pytest.raises(UserError, match=rf"wrong gradients.*\({planes}, 4, 4\)"):
            choose_precision(build, shape, "bf16", training=True)
    torch.manual_seed(0)
    layer, image = build(), torch.randn(shape)
    gradients = []
    for precision in (chosen, Precision()):
        with precision.autocast("cpu"):
            loss = layer(image).float().square().sum()
        gradients.append(torch.autograd.grad(loss, layer.weight)[0])
    assert (gradients[0] - gradients[1]).norm() < 0.05 * gradients[1].norm()


def test_fp32_is_sound():
    assert unsound_layer(Precision("fp32", True), small(), torch.rand(1, 1, 4, 8, 8)) is None
