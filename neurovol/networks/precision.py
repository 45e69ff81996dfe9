"""In which arithmetic and memory layout a network runs: chosen once by a short trial, then recorded."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from neurovol.errors import UserError

log = logging.getLogger(__name__)

DType = Literal["fp32", "bf16"]
TRIAL_SECONDS = 3.0
_TORCH: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Precision:
    """Arithmetic and memory layout, and the milliseconds of each candidate in the trial that chose them."""

    dtype: DType = "fp32"
    channels_last: bool = False
    trial: Mapping[str, float] = field(default_factory=dict, compare=False)

    @property
    def name(self) -> str:
        return self.dtype + (" channels_last" if self.channels_last else "")

    def to_json(self) -> dict[str, Any]:
        return {"dtype": self.dtype, "channels_last": self.channels_last, "trial": dict(self.trial)}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Precision:
        return cls(cast(DType, fields["dtype"]), bool(fields["channels_last"]), dict(fields["trial"]))

    def autocast(self, device: str) -> torch.autocast:
        """The context of a training step: weights stay fp32, convolutions run in `dtype`."""
        return torch.autocast(device, _TORCH["bf16"], enabled=self.dtype == "bf16")

    def lay_out(self, tensor: Tensor) -> Tensor:
        """The tensor in this memory layout, if it has the 4 or 5 axes of images or their weights."""
        if not self.channels_last or tensor.ndim not in (4, 5):
            return tensor
        return tensor.contiguous(memory_format=torch.channels_last if tensor.ndim == 4 else torch.channels_last_3d)

    def lay_out_weights(self, model: nn.Module) -> None:
        """Bring a model's weights into this memory layout, in place."""
        for weight in model.parameters():
            weight.data = self.lay_out(weight.data)

    def for_inference(self, model: nn.Module, device: str = "cpu") -> nn.Module:
        """The model in eval mode, its weights cast to `dtype` and laid out, in place; UserError without its device."""
        need_device(device)
        model.eval().requires_grad_(False).to(device, _TORCH[self.dtype])
        self.lay_out_weights(model)
        return model

    def input(self, image: Tensor, device: str = "cpu") -> Tensor:
        """An image as a model made by `for_inference` takes it."""
        return self.lay_out(image.to(device, _TORCH[self.dtype]))


def need_device(device: str) -> None:
    """UserError where a GPU is meant and torch sees none."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"a GPU is to compute, but torch sees none on {socket.gethostname()}: ask for one (gpus = 1 in "
            f"[cluster.gpu_job], or a machine that has one); what was begun on one and is to do without: --redo"
        )


def bf16_is_fast(device: str = "cpu") -> bool:
    """Whether the processor computes bf16 itself rather than emulating it."""
    try:
        if torch.device(device).type == "cuda":
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):  # torch built without oneDNN
        return False


def candidates(wanted: Literal["auto", "fp32", "bf16"], device: str = "cpu") -> tuple[Precision, ...]:
    """What a setting leaves to choose from, the likely fastest first; a precision that is set leaves one."""
    bf16, fp32 = Precision("bf16", True), Precision("fp32", True)
    if wanted != "auto":
        return (bf16 if wanted == "bf16" else fp32,)
    return (*((bf16,) if bf16_is_fast(device) else ()), fp32, Precision("fp32", False))


def choose_precision(
    build: Callable[[], nn.Module],
    input_shape: tuple[int, ...],
    wanted: Literal["auto", "fp32", "bf16"] = "auto",
    training: bool = False,
    device: str = "cpu",
) -> Precision:
    """The fastest candidate on this machine, over a few forward passes or training steps of `input_shape`.

    `build` makes a fresh model; the random state is left as it was. Give the shape of one patch: the
    trial then takes two to three seconds on two cores; after `TRIAL_SECONDS`, which a busy machine may
    need, the candidates not yet tried are left out. For training, a candidate that computes wrong
    gradients is none; a UserError if it was the only one.
    """
    trial: dict[Precision, float] = {}
    started = perf_counter()
    with torch.random.fork_rng():
        for precision in candidates(wanted, device):
            if trial and perf_counter() - started > TRIAL_SECONDS:
                break
            if training and precision.dtype != "fp32":
                unsound = unsound_layer(precision, build().to(device), torch.rand(input_shape, device=device))
                if unsound is not None:
                    log.warning("%s is left out: the gradient of %s would be wrong", precision.name, unsound)
                    continue
            run = _runner(precision, build, input_shape, training, device)
            trial[precision] = round(_milliseconds(run, min(trial.values(), default=float("inf"))), 1)
    if not trial:
        raise UserError(
            f'precision = "{wanted}": this machine computes wrong gradients in it for patches of {input_shape[2:]}; '
            'use precision = "auto" or "fp32", or a `patch` of another size'
        )
    fastest = min(trial, key=lambda p: trial[p])
    return Precision(fastest.dtype, fastest.channels_last, {p.name: ms for p, ms in trial.items()})


def unsound_layer(precision: Precision, model: nn.Module, image: Tensor) -> str | None:
    """The first convolution whose weight gradient is wrong in this precision, for an image of that shape.

    oneDNN as of torch 2.13 leaves a third and more of it uninitialised in bf16, for 3³ convolutions over
    exactly two planes: patches 8 deep at stride 4, say. Nothing warns of it, so each layer is compared with fp32.
    """
    shapes: dict[nn.Module, torch.Size] = {}
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Conv3d | nn.ConvTranspose3d):
            layer.register_forward_hook(lambda layer, inputs, _: shapes.update({layer: inputs[0].shape}))
    precision.lay_out_weights(model)
    with torch.no_grad():
        model(image)
    for layer, shape in shapes.items():
        part = torch.rand(shape, device=image.device)
        found = _weight_gradient(layer, part, precision)  # first, lest what it leaves out is found right in memory
        right = _weight_gradient(layer, part, Precision())
        if not (found - right).norm() < 0.1 * right.norm():  # sound ones are off by 0.003; NaN is not less
            return f"{layer} on {tuple(shape)}"
    return None


def _weight_gradient(layer: nn.Module, image: Tensor, precision: Precision) -> Tensor:
    weight = next(layer.parameters())
    with precision.autocast(image.device.type):
        loss = layer(precision.lay_out(image)).float().square().sum()
    (gradient,) = torch.autograd.grad(loss, weight)
    return gradient


def _runner(
    precision: Precision, build: Callable[[], nn.Module], shape: tuple[int, ...], training: bool, device: str
) -> Callable[[], object]:
    image = torch.rand(shape, device=device)
    model = build().to(device)
    return _training(precision, model, image) if training else _inference(precision, model, image)


def _inference(precision: Precision, model: nn.Module, image: Tensor) -> Callable[[], object]:
    model, image = precision.for_inference(model, image.device.type), precision.input(image, image.device.type)

    def run() -> object:
        with torch.inference_mode():
            return model(image).sum().item()

    return run


def _training(precision: Precision, model: nn.Module, image: Tensor) -> Callable[[], object]:
    precision.lay_out_weights(model.train())
    image = precision.lay_out(image)

    def run() -> object:
        with precision.autocast(image.device.type):
            loss = model(image).float().square().mean()
        loss.backward()
        return loss.item()

    return run


def _milliseconds(run: Callable[[], object], best_ms: float) -> float:
    """The fastest of up to three runs after a first one that warms up, fewer where it is hopeless."""
    first = _timed(run)
    if first > 3 * best_ms:
        return first
    times = [_timed(run)]
    while len(times) < 3 and sum(times) < 400:
        times.append(_timed(run))
    return min(times)


def _timed(run: Callable[[], object]) -> float:
    started = perf_counter()
    run()
    return 1000 * (perf_counter() - started)
