"""A model on disk: safetensors and JSON, and the state of an unfinished training. Never a pickle.

A model's folder holds `checkpoint.safetensors` (weights) and `checkpoint.json` (all else, the weights'
sha256 included), the JSON written last: without it the model is unfinished.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as bytes_of_tensors
from torch import Tensor, nn

from neurovol.errors import Failure, UserError
from neurovol.networks.precision import Precision

Method = Literal["cnn2d", "unet3d"]
WEIGHTS, ABOUT, TRAINING = "checkpoint.safetensors", "checkpoint.json", "training.safetensors"
FORMAT = 1


@dataclass(frozen=True)
class Meta:
    """What a model was trained on, and how: predicting on anything else is refused."""

    voxel_size_um: tuple[float, float, float]
    channels: int
    normalisation: str  # the rule; each sample keeps its own constants
    fingerprint: str  # of the training
    precision: Precision = field(default_factory=Precision)
    log_prior_odds: float = 0.0  # log (neurons / background) where training drew as many of both
    notes: Mapping[str, Any] = field(default_factory=dict)  # anything JSON, for reports

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"precision": self.precision.to_json(), "notes": dict(self.notes)}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Meta:
        z, y, x = fields["voxel_size_um"]
        return cls(**{**fields, "voxel_size_um": (z, y, x), "precision": Precision.from_json(fields["precision"])})


@dataclass(frozen=True)
class Checkpoint:
    """A trained model as loaded: `network` is the JSON of its spec, `state` its weights by name."""

    folder: Path
    method: Method
    network: dict[str, Any]
    state: dict[str, Tensor]
    meta: Meta


def save_checkpoint(
    folder: Path, method: Method, network: Mapping[str, Any], state: Mapping[str, Tensor], meta: Meta
) -> None:
    """Write a model's folder; at no moment does an unfinished or mixed one look finished."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ABOUT).unlink(missing_ok=True)
    weights = bytes_of_tensors(_portable(state))
    _write_durably(folder / WEIGHTS, weights)
    about = {
        "format": FORMAT,
        "method": method,
        "network": dict(network),
        "meta": meta.to_json(),
        "sha256": hashlib.sha256(weights).hexdigest(),
    }
    _write_durably(folder / ABOUT, json.dumps(about, indent=2).encode())


def load_checkpoint(folder: Path, method: Method | None = None) -> Checkpoint:
    """The model in a folder. UserError where there is none, or none of that method; Failure where it is damaged."""
    about = _about(folder)
    if method is not None and about["method"] != method:
        raise UserError(f'{folder}: holds a model of method "{about["method"]}" where a "{method}" is needed')
    file = folder / WEIGHTS
    try:
        weights = file.read_bytes()
    except FileNotFoundError:
        raise UserError(
            f"{folder}: {ABOUT} is there but {WEIGHTS} is not; copy the whole folder, or train anew"
        ) from None
    if hashlib.sha256(weights).hexdigest() != about["sha256"]:
        raise Failure(f"{file}: damaged: its sha256 is not the one in {ABOUT}; restore it from a copy, or train anew")
    try:
        meta = Meta.from_json(about["meta"])
    except (KeyError, TypeError, ValueError) as error:
        raise Failure(f"{folder / ABOUT}: damaged ({error}); restore it from a copy, or train anew") from None
    return Checkpoint(folder, about["method"], about["network"], tensors_from_bytes(weights), meta)


def _about(folder: Path) -> dict[str, Any]:
    file = folder / ABOUT
    if not folder.is_dir():
        raise UserError(f"{folder}: no such model folder; give one that holds {ABOUT} and {WEIGHTS}")
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
        known = about["format"] == FORMAT and {"method", "network", "meta", "sha256"} <= set(about)
    except FileNotFoundError:
        raise UserError(
            f"{folder}: no {ABOUT}, so no finished model; let training finish, or give another folder"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise Failure(f"{file}: damaged ({error}); restore it from a copy, or train anew") from None
    if not known:
        raise UserError(f"{file}: format {about['format']}; this version reads format {FORMAT}: update neurovol")
    return cast(dict[str, Any], about)


def weights_sha256(folder: Path) -> str:
    """What identifies a finished model's weights, without loading them; UserError where there is no model."""
    return str(_about(folder)["sha256"])


def checkpoint_stamp(folder: str) -> tuple[int, ...]:
    """Changes whenever the checkpoint does: the key under which a process keeps a loaded model."""
    try:
        status = (Path(folder) / ABOUT).stat()
    except FileNotFoundError:
        return ()
    return status.st_ino, status.st_mtime_ns


def check_matches(checkpoint: Checkpoint, voxel_size_um: tuple[float, float, float], channels: int) -> None:
    """Predict only as trained: a UserError at a voxel size more than 1 % off, or at another channel count."""
    trained = checkpoint.meta
    if channels != trained.channels:
        raise UserError(
            f"{checkpoint.folder}: trained on {trained.channels} channels, the sample has {channels}; "
            "convert as many `channels`, in the same order, or train a model for this sample"
        )
    for axis, size, right in zip("zyx", voxel_size_um, trained.voxel_size_um, strict=True):
        if abs(size - right) > 0.01 * right:
            raise UserError(
                f"{checkpoint.folder}: trained at a voxel size of {trained.voxel_size_um} µm (z, y, x), the sample has "
                f"{tuple(voxel_size_um)}: {axis} differs by more than 1 %; correct `voxel_size_um` if it is mistaken, "
                "or train a model for this size"
            )


def save_training_state(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, steps_done: int, notes: Mapping[str, Any]
) -> None:
    """Write what training needs to go on as if never stopped, as one file, replaced at one moment.

    `notes` is anything JSON that belongs to the same moment: the precision, the loss curve.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = _portable({f"model.{name}": value for name, value in model.state_dict().items()} | _moments(optimizer))
    about = {"steps_done": steps_done, "notes": dict(notes), "sha256": _digest(tensors)}
    _write_durably(folder / TRAINING, bytes_of_tensors(tensors, {"about": json.dumps(about)}))


def load_training_state(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, dict[str, Any]] | None:
    """Put model and optimizer back to where they were saved; steps done and notes, or None if nothing was saved.

    Lay out the model's weights before: the optimizer's moments follow them, and bit-equality with them.
    """
    file = folder / TRAINING
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return None
    try:
        tensors = tensors_from_bytes(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        about = json.loads(header["__metadata__"]["about"])
    except (SafetensorError, ValueError, KeyError) as error:
        raise Failure(f"{file}: damaged ({error}); delete it, and training starts from its first step") from None
    if about["sha256"] != _digest(tensors):
        raise Failure(f"{file}: damaged: its sha256 differs; delete it, and training starts from its first step")
    model.load_state_dict(_below("model", tensors))
    _restore_moments(optimizer, _below("optimizer", tensors))
    return int(about["steps_done"]), cast(dict[str, Any], about["notes"])


def _moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state: dict[int, dict[str, Tensor]] = optimizer.state_dict()["state"]
    return {f"optimizer.{i}.{name}": value for i, values in state.items() for name, value in values.items()}


def _restore_moments(optimizer: torch.optim.Optimizer, moments: Mapping[str, Tensor]) -> None:
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in moments.items():
        number, _, kind = name.partition(".")
        like = weights[int(number)]
        # in the weight's own memory layout, as the optimizer made it: another one may round otherwise
        moment = torch.empty_like(like, requires_grad=False).copy_(value) if value.ndim else value
        state.setdefault(int(number), {})[kind] = moment
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix + "."): t for name, t in tensors.items() if name.startswith(prefix + ".")}


def _portable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _digest(tensors: Mapping[str, Tensor]) -> str:
    return hashlib.sha256(bytes_of_tensors(dict(sorted(tensors.items())))).hexdigest()


def _write_durably(file: Path, content: bytes) -> None:
    """Under a temporary name, to disk, then renamed: the file is whole or not there."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
    directory = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
