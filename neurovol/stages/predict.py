"""What pseudo-labelling, segmenting and the baselines share: a network over boxes of a sample, through the runner."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from distributed import Client

from neurovol.blockwise.ledger import Header, Ledger, read_ledger
from neurovol.geometry import BlockGrid, Box, Zyx, check_halo, round_up, zyx
from neurovol.levels import fitted_shard
from neurovol.networks.checkpoint import Checkpoint, check_matches, load_checkpoint
from neurovol.networks.cnn2d import CNN2DKernel, CNN2DSpec
from neurovol.networks.normalise import Normalisation
from neurovol.networks.precision import DType, Precision, candidates, choose_precision
from neurovol.networks.unet3d import UNet3D, UNet3DKernel, UNet3DSpec, fused
from neurovol.progress import Report, silent
from neurovol.project import Step, perform, state_of
from neurovol.stages.cover import Cover, level_blocks, write_levels
from neurovol.stages.plan import Plan
from neurovol.stages.skip import tissue_share, where_of
from neurovol.stages.steps import Steps
from neurovol.stages.view import SampleView
from neurovol.volume.omezarr import VolumeReader, VolumeWriter, create_volume, finish_volume, open_volume, sweep_partial

TRIAL_SHAPE = (32, 64, 64)


def device() -> str:
    """Where networks run: a GPU if torch sees one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Prediction:
    """A network to be run over boxes of one sample: all that a plan and a run need."""

    step: Step
    view: SampleView
    image: Path
    checkpoint: Path
    boxes: tuple[Box, ...]
    window: Zyx  # as set; rounded up to the network's stride
    precision: Any  # as set: auto, fp32 or bf16
    whole: bool  # the boxes are the whole sample, so every shard exists
    in_tissue: bool = False  # and nowhere else


def spec_of(checkpoint: Checkpoint) -> CNN2DSpec | UNet3DSpec:
    if checkpoint.method == "cnn2d":
        return CNN2DSpec.from_json(checkpoint.network)
    return UNet3DSpec.from_json(checkpoint.network)


def fitted_window(window: Zyx, stride: Zyx) -> Zyx:
    """The window as set, rounded up to the stride."""
    return zyx(round_up(w, s) for w, s in zip(window, stride, strict=True))


def normalisation_of(image: Path) -> Normalisation:
    """A sample's own constants of the normalisation rule, made at conversion."""
    return Normalisation.from_json(open_volume(image).attributes["normalisation"])


def plan_prediction(steps: Steps, wanted: Prediction, spec: CNN2DSpec | UNet3DSpec) -> Plan:
    """Blocks, windows, bytes, memory and hours of a prediction; needs no checkpoint and no image yet."""
    shape = wanted.view.shape
    shard = fitted_shard(shape, wanted.view.chunk, wanted.view.shard)
    blocks = BlockGrid(shape, shard, shard).meeting(wanted.boxes)
    window = fitted_window(wanted.window, spec.stride)
    check_halo(spec.halo, spec.reach, spec.stride)
    read = zyx(w + 2 * h for w, h in zip(window, spec.halo, strict=True))
    cover = Cover(VolumeReader(""), _never, VolumeWriter(""), shape, wanted.boxes, window, spec.halo, spec.stride)
    windows = cover.window_count(blocks)
    item = wanted.view.source.dtype.itemsize * len(wanted.view.channels)
    voxels = sum(box.size for box in wanted.boxes)
    share = tissue_share(wanted.image) if wanted.in_tissue else None
    dtype: DType = "bf16" if candidates(wanted.precision, device())[0].dtype == "bf16" else "fp32"
    state = state_of(wanted.step)
    return Plan(
        wanted.step.name,
        state.kind,
        blocks=len(blocks),
        blocks_done=min(state.done, len(blocks)),
        windows=windows,
        read_bytes=windows * prod(read) * item,
        write_bytes=int(voxels * 8 / 7),
        memory_bytes=spec.working_bytes(read, dtype if isinstance(spec, UNet3DSpec) else "fp32") + 5 * prod(shard),
        voxels=round(voxels * (1.0 if share is None else share)),
        pace=f"unet3d {dtype}" if isinstance(spec, UNet3DSpec) else "cnn2d",
        notes=(
            f"windows   of {list(window)}, halo {list(spec.halo)} (reach {list(spec.reach)})",
            f"store     {wanted.step.output}",
            *_skipping(wanted, share),
        ),
    )


def _skipping(wanted: Prediction, share: float | None) -> tuple[str, ...]:
    if not wanted.in_tissue:
        return ()
    known = "its share is known after conversion" if share is None else f"{share:.1%} of the sample"
    return (f"where     in tissue alone (labels/tissue), {known}; blocks without any are skipped",)


def _never(_: Any) -> Any:
    raise AssertionError("a plan computes nothing")


def predict(steps: Steps, wanted: Prediction, *, client: Client, redo: bool = False, report: Report = silent) -> None:
    """Write a network's probabilities over the boxes, block by block; continues where an earlier run ended."""

    def cover(step: Step) -> None:
        _cover(steps, wanted, step, client, report)

    perform(wanted.step, cover, redo=redo)


def _cover(steps: Steps, wanted: Prediction, step: Step, client: Client, report: Report) -> None:
    settings, view = steps.project.settings, wanted.view
    checkpoint = load_checkpoint(wanted.checkpoint)
    check_matches(checkpoint, view.voxel_size_um, len(view.channels))
    spec = spec_of(checkpoint)
    create_volume(step.output, channels=None, dtype="uint8", sparse=not wanted.whole, **view.layout)
    sweep_partial(step.output)
    boxes = None if wanted.whole else wanted.boxes
    blocks = level_blocks(open_volume(step.output, allow_incomplete=True), boxes)
    header = Header(step.name, step.inputs, sum(map(len, blocks)), _chosen(step, wanted, spec))
    with Ledger(step.ledger, header) as ledger:
        task = _task(ledger.header.chosen, wanted, step, spec)
        retries = settings.cluster.retries
        write_levels(client, step.output, task, ledger, boxes, retries=retries, report=report)
        finish_volume(
            step.output,
            name=f"{view.name} {wanted.checkpoint.name}",
            attributes={"model": wanted.checkpoint.name, "boxes": [b.pairs for b in wanted.boxes], "scale": 255},
        )
        ledger.finish(voxels=sum(b.size for b in wanted.boxes))


def _chosen(step: Step, wanted: Prediction, spec: CNN2DSpec | UNet3DSpec) -> dict[str, Any]:
    """Window and precision: those of an earlier run of this step, else as set and by trial."""
    record = read_ledger(step.ledger)
    if record is not None:
        return record.header.chosen
    window = list(fitted_window(wanted.window, spec.stride))
    return {"window": window, "precision": _precision(wanted, spec).to_json(), "device": device()}


def _precision(wanted: Prediction, spec: CNN2DSpec | UNet3DSpec) -> Precision:
    if isinstance(spec, CNN2DSpec):
        return Precision("fp32", True)  # exact: dense inference must equal the patch classifier
    return choose_precision(
        lambda: fused(UNet3D(spec)),
        (1, spec.channels, *_on_stride(TRIAL_SHAPE, spec)),
        wanted.precision,
        device=device(),
    )


def _on_stride(shape: Zyx, spec: UNet3DSpec) -> Zyx:
    return fitted_window(shape, spec.stride)


def _task(chosen: dict[str, Any], wanted: Prediction, step: Step, spec: CNN2DSpec | UNet3DSpec) -> Cover:
    precision = Precision.from_json(chosen["precision"])
    kernel_type = CNN2DKernel if isinstance(spec, CNN2DSpec) else UNet3DKernel
    kernel = kernel_type(
        str(wanted.checkpoint),
        normalisation_of(wanted.image),
        precision.dtype,
        precision.channels_last,
        chosen["device"],
    )
    return Cover(
        VolumeReader(str(wanted.image)),
        kernel,
        VolumeWriter(str(step.output)),
        wanted.view.shape,
        wanted.boxes,
        zyx(chosen["window"]),
        spec.halo,
        spec.stride,
        where_of(wanted.image) if wanted.in_tissue else None,
    )
