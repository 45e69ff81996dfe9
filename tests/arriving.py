"""A project with an inbox, a model that is pinned for it, and samples that arrive: small enough for tests."""

from pathlib import Path

import torch

from neurovol.networks.checkpoint import Meta, save_checkpoint
from neurovol.networks.normalise import RULE
from neurovol.networks.unet3d import UNet3D, UNet3DSpec
from neurovol.samplesettings import Phantom
from neurovol.volume.export import write_phantom

VOXEL_SIZE_UM = (2.0, 0.88, 0.88)  # a phantom's own
PROJECT = """
name = "lab"

[inbox]
folder = "arrivals"
model = "unet3d-1"
settle_s = 1

[convert]
chunk = [8, 16, 16]
shard = [16, 64, 64]

[segment]
window = [16, 64, 64]
precision = "fp32"

[cluster]
workers = 1
threads = 2
"""


def write_model(folder: Path, seed: int = 0) -> None:
    """A U-Net that nobody trained; each voxel's probability is the same from run to run."""
    torch.manual_seed(seed)
    spec = UNet3DSpec(base=2, pooling=((2, 2, 2),))
    weights = UNet3D(spec).state_dict()
    save_checkpoint(folder, "unet3d", spec.to_json(), weights, Meta(VOXEL_SIZE_UM, 1, RULE, "test"))


def write_project(folder: Path, *changes: tuple[str, str]) -> Path:
    """The project's file, with an empty drop folder and the pinned model; texts replaced must be there."""
    text = PROJECT
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    file = folder / "project.toml"
    file.write_text(text, encoding="utf-8")
    (folder / "arrivals").mkdir()
    write_model(folder / "stores" / "lab" / "models" / "unet3d-1")
    return file


def arrive(file: Path, name: str = "m1", shape: tuple[int, int, int] = (18, 70, 90)) -> Path:
    """A phantom's stack in the project's drop folder."""
    stack = file.parent / "arrivals" / f"{name}.tif"
    write_phantom(Phantom(shape=shape, seed=3), stack)
    return stack


def write_slow_project(folder: Path) -> tuple[Path, Path]:
    """A project with sample m1 of many blocks, so that there is time to disturb it; the ledger of its segmentation."""
    file = write_project(folder, ("window = [16, 64, 64]", "window = [8, 32, 32]"))
    arrive(file, "m1", (40, 200, 200))
    return file, folder / "stores/lab/samples/m1/ledgers/segment@unet3d-1.jsonl"
