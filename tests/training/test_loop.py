import pytest
import torch
from torch import Tensor, nn

from neurovol.errors import Failure
from neurovol.networks.checkpoint import load_training_state, save_training_state
from neurovol.networks.cnn2d import CNN2D, CNN2DSpec
from neurovol.networks.precision import Precision
from neurovol.networks.unet3d import UNet3D, UNet3DSpec
from neurovol.training.loop import reestimate_batch_norm, step_seed, train
from neurovol.training.loss import pixel_loss, voxel_loss

FP32 = Precision()


def voxels_at(step: int) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(step)
    image = torch.rand(2, 1, 16, 8, 8, generator=g)  # not 8 deep: see networks.precision.unsound_layer
    return image, (image[:, 0] > 0.6).float(), torch.rand(2, 16, 8, 8, generator=g).round()


def pixels_at(step: int) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(step)
    return torch.rand(8, 1, 32, 32, generator=g), torch.arange(8) % 2


CASES = {
    "unet3d": (lambda: UNet3D(UNet3DSpec(base=4)), voxels_at, voxel_loss),
    "cnn2d": (lambda: CNN2D(CNN2DSpec()), pixels_at, pixel_loss),
}


def start(method: str, precision: Precision, seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = CASES[method][0]()
    precision.lay_out_weights(model)
    return model, torch.optim.Adam(model.parameters(), 1e-3)


def go(method, model, optimizer, first, last, precision):
    _, batch_at, loss_of = CASES[method]
    return list(train(model, optimizer, batch_at, loss_of, first, last, precision, seed=7))


def everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    moments = {f"{i}.{name}": v for i, values in optimizer.state_dict()["state"].items() for name, v in values.items()}
    return model.state_dict() | moments


@pytest.mark.parametrize("method", CASES)
@pytest.mark.parametrize("precision", [FP32, Precision("bf16", True)], ids=lambda p: p.name)
def test_training_resumed_after_3_of_6_steps_ends_bit_equal(method, precision, tmp_path):
    straight = start(method, precision)
    losses = [s.loss for s in go(method, *straight, 0, 6, precision)]

    stopped = start(method, precision)
    first = [s.loss for s in go(method, *stopped, 0, 3, precision)]
    save_training_state(tmp_path, *stopped, 3, {"losses": first})

    resumed = start(method, precision, seed=99)
    torch.manual_seed(1234)
    steps_done, notes = load_training_state(tmp_path, *resumed)
    second = [s.loss for s in go(method, *resumed, steps_done, 6, precision)]

    assert notes["losses"] + second == losses
    expected, found = everything(*straight), everything(*resumed)
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


def test_steps_are_counted_and_dropout_differs_between_them():
    model, optimizer = start("cnn2d", FP32)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    batch = pixels_at(0)
    steps = list(train(model, optimizer, lambda _: batch, pixel_loss, 4, 7, FP32, seed=0))
    assert [s.steps_done for s in steps] == [5, 6, 7]
    assert len({s.loss for s in steps}) == 3
    assert all(s.seconds >= s.waited >= 0 for s in steps)


def test_the_loss_falls():
    model, optimizer = start("unet3d", FP32)
    batch = voxels_at(0)
    losses = [s.loss for s in train(model, optimizer, lambda _: batch, voxel_loss, 0, 15, FP32, seed=0)]
    assert losses[-1] < 0.9 * losses[0]


def test_evaluating_between_steps_does_not_change_them():
    plain, watched = start("unet3d", FP32), start("unet3d", FP32)
    expected = [s.loss for s in go("unet3d", *plain, 0, 3, FP32)]
    losses = []
    for step in train(*watched, voxels_at, voxel_loss, 0, 3, FP32, seed=7):
        losses.append(step.loss)
        watched[0].eval()
        torch.rand(5)
    assert losses == expected


def test_a_loss_that_is_not_finite_is_a_failure_that_names_the_step():
    model, optimizer = start("unet3d", FP32)
    image, target, weight = voxels_at(0)
    batch = (image * float("inf"), target, weight)
    with pytest.raises(Failure, match="nan at step 4"):
        next(train(model, optimizer, lambda _: batch, voxel_loss, 4, 5, FP32, seed=0))


def test_seeds_do_not_collide():
    seeds = {step_seed(seed, step) for seed in range(50) for step in range(200)}
    assert len(seeds) == 50 * 200
    assert all(0 <= s < 2**63 for s in seeds)


def test_reestimated_statistics_are_the_plain_average_over_the_images():
    model = nn.Sequential(nn.BatchNorm3d(1), nn.Conv3d(1, 1, 1))
    model(torch.rand(2, 1, 4, 4, 4) * 50)
    images = [torch.rand(2, 1, 4, 4, 4) + shift for shift in (0, 1, 5)]
    reestimate_batch_norm(model, images, FP32)
    norm = model[0]
    assert norm.running_mean.item() == pytest.approx(torch.stack(images).mean().item(), rel=1e-5)
    assert norm.running_var.item() == pytest.approx(sum(i.var().item() for i in images) / 3, rel=1e-5)
    assert norm.momentum == 0.1


def test_a_network_without_batch_norm_reads_no_image():
    def none():
        pytest.fail("an image was read")
        yield torch.zeros(1)

    reestimate_batch_norm(CNN2D(CNN2DSpec()), none(), FP32)
