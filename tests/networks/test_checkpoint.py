import json

import pytest
import torch
from torch import nn

from neurovol.errors import Failure, UserError
from neurovol.networks.checkpoint import (
    Meta,
    check_matches,
    load_checkpoint,
    load_training_state,
    save_checkpoint,
    save_training_state,
)
from neurovol.networks.precision import Precision

META = Meta(
    voxel_size_um=(2.0, 1.0, 1.0),
    channels=2,
    normalisation="percentile-1-99.8",
    fingerprint="abc",
    precision=Precision("bf16", True, {"bf16 channels_last": 3.5}),
    log_prior_odds=-2.25,
    notes={"steps": 7},
)


@pytest.fixture
def folder(tmp_path):
    save_checkpoint(tmp_path / "m", "unet3d", {"base": 4}, {"w": torch.arange(6.0).reshape(2, 3).T}, META)
    return tmp_path / "m"


def flip_a_byte(file, place=-1):
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def test_a_checkpoint_comes_back_as_saved(folder):
    checkpoint = load_checkpoint(folder, "unet3d")
    assert checkpoint.network == {"base": 4}
    assert torch.equal(checkpoint.state["w"], torch.arange(6.0).reshape(2, 3).T)
    assert checkpoint.meta == META
    assert checkpoint.meta.precision.trial == {"bf16 channels_last": 3.5}


def test_only_two_files_and_no_leftovers(folder):
    assert sorted(f.name for f in folder.iterdir()) == ["checkpoint.json", "checkpoint.safetensors"]


def test_a_flipped_byte_is_a_failure_that_names_the_file(folder):
    flip_a_byte(folder / "checkpoint.safetensors")
    with pytest.raises(Failure, match=r"checkpoint\.safetensors.*sha256"):
        load_checkpoint(folder)


def test_damaged_json_is_a_failure_that_names_the_file(folder):
    flip_a_byte(folder / "checkpoint.json", 0)
    with pytest.raises(Failure, match=r"checkpoint\.json"):
        load_checkpoint(folder)


def test_a_missing_entry_is_a_failure_that_names_the_file(folder):
    about = json.loads((folder / "checkpoint.json").read_text())
    del about["meta"]["channels"]
    (folder / "checkpoint.json").write_text(json.dumps(about))
    with pytest.raises(Failure, match=r"checkpoint\.json.*channels"):
        load_checkpoint(folder)


def test_a_newer_format_is_refused(folder):
    about = json.loads((folder / "checkpoint.json").read_text())
    (folder / "checkpoint.json").write_text(json.dumps(about | {"format": 99}))
    with pytest.raises(UserError, match="format 99"):
        load_checkpoint(folder)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such model folder"):
        load_checkpoint(tmp_path / "none")


@pytest.mark.parametrize("missing", ["checkpoint.json", "checkpoint.safetensors"])
def test_half_a_checkpoint_is_refused(folder, missing):
    (folder / missing).unlink()
    with pytest.raises(UserError, match=missing):
        load_checkpoint(folder)


def test_the_other_method_is_refused(folder):
    with pytest.raises(UserError, match='"unet3d" where a "cnn2d"'):
        load_checkpoint(folder, "cnn2d")


@pytest.mark.parametrize("size", [(2.0, 1.0, 1.0), (2.019, 0.991, 1.0)])
def test_voxel_sizes_within_a_percent_match(folder, size):
    check_matches(load_checkpoint(folder), size, 2)


def test_another_voxel_size_is_refused(folder):
    with pytest.raises(UserError, match=r"\(2.0, 1.0, 1.0\).*\(2.0, 1.0, 1.02\).*x differs"):
        check_matches(load_checkpoint(folder), (2.0, 1.0, 1.02), 2)


def test_another_channel_count_is_refused(folder):
    with pytest.raises(UserError, match="trained on 2 channels, the sample has 1"):
        check_matches(load_checkpoint(folder), (2.0, 1.0, 1.0), 1)


def trained_a_step() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
    Precision(channels_last=True).lay_out_weights(model)
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    model(torch.rand(2, 2, 5, 5)).square().sum().backward()
    optimizer.step()
    return model, optimizer


def untrained() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
    Precision(channels_last=True).lay_out_weights(model)
    return model, torch.optim.Adam(model.parameters(), 0.1)


def test_a_training_state_comes_back_as_saved(tmp_path):
    model, optimizer = trained_a_step()
    save_training_state(tmp_path, model, optimizer, 1, {"losses": [0.5]})
    again, again_optimizer = untrained()
    assert load_training_state(tmp_path, again, again_optimizer) == (1, {"losses": [0.5]})
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    before, after = optimizer.state_dict()["state"], again_optimizer.state_dict()["state"]
    for number, moments in before.items():
        for name, value in moments.items():
            assert torch.equal(after[number][name], value)
            assert after[number][name].stride() == value.stride()


def test_no_training_state_is_none(tmp_path):
    assert load_training_state(tmp_path, *untrained()) is None


@pytest.mark.parametrize("place", [-1, 3, 30])
def test_a_damaged_training_state_is_a_failure_that_names_the_file(tmp_path, place):
    save_training_state(tmp_path, *trained_a_step(), 1, {})
    flip_a_byte(tmp_path / "training.safetensors", place)
    with pytest.raises(Failure, match=r"training\.safetensors"):
        load_training_state(tmp_path, *untrained())
