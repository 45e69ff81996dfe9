"""The training loop, for both networks: yields its steps, and the caller decides what to log and when to save."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import isfinite
from time import perf_counter

import torch
from torch import Tensor, nn

from neurovol.errors import Failure
from neurovol.networks.precision import Precision

LossOf = Callable[[nn.Module, tuple[Tensor, ...]], Tensor]


@dataclass(frozen=True, slots=True)
class TrainStep:
    """One step, finished: model and optimizer are as after it while the caller holds this."""

    steps_done: int  # this one included
    loss: float
    seconds: float
    waited: float  # of these seconds, for the batch


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch_at: Callable[[int], tuple[Tensor, ...]],
    loss_of: LossOf,
    first_step: int,
    last_step: int,
    precision: Precision,
    seed: int,
) -> Iterator[TrainStep]:
    """Steps `first_step` to `last_step` (excluded), counted from 0; batches are moved to the model's device.

    Each step's random numbers are a function of seed and step alone, so a run resumed with model and
    optimizer as they were continues bit-equal (on CPU, with as many threads). Lay out the model's
    weights (`precision.lay_out_weights`) before making the optimizer. Failure if the loss is not finite.
    """
    device = next(model.parameters()).device
    for step in range(first_step, last_step):
        started = perf_counter()
        batch = _on(device, batch_at(step), precision)
        waited = perf_counter() - started

        torch.manual_seed(step_seed(seed, step))
        model.train()
        optimizer.zero_grad(set_to_none=True)
        with precision.autocast(device.type):
            loss = loss_of(model, batch)
        loss.backward()
        if not isfinite(loss.item()):
            raise Failure(f"training: the loss is {loss.item()} at step {step}; lower `learning_rate`")
        optimizer.step()

        yield TrainStep(step + 1, loss.item(), perf_counter() - started, waited)


def step_seed(seed: int, step: int) -> int:
    """One 63-bit number per seed and step, far apart for neighbours.

    >>> step_seed(0, 1) == step_seed(1, 0)
    False
    """
    # Knuth's and splitmix64's multipliers
    return (seed * 0x5851F42D4C957F2D + (step + 1) * 0x9E3779B97F4A7C15) % 2**63


@torch.no_grad()
def reestimate_batch_norm(model: nn.Module, images: Iterable[Tensor], precision: Precision) -> None:
    """Replace each batch norm's running averages, which lag behind the weights, by plain averages over `images`."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's word for a plain average
    model.train()
    device = next(model.parameters()).device
    for image in images:
        with precision.autocast(device.type):
            model(*_on(device, (image,), precision))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _on(device: torch.device, batch: tuple[Tensor, ...], precision: Precision) -> tuple[Tensor, ...]:
    # copied even on the CPU: numpy's memory is aligned now so, now so, and sums round by alignment
    image, *targets = (tensor.to(device, non_blocking=True, copy=True) for tensor in batch)
    return (precision.lay_out(image), *targets)
