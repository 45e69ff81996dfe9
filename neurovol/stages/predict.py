"""What pseudo-labelling, segmenting and the baselines share: a network over boxes of a sample, through the runner."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch
from distributed import Client

from neurovol.blockwise.cluster import on_worker
from neurovol.blockwise.ledger import Header, Ledger, read_ledger
from neurovol.clustersettings import ClusterSettings
from neurovol.geometry import Block, BlockGrid, Box, Zyx, check_halo, round_up, zyx
from neurovol.levels import fitted_shard
from neurovol.networks.checkpoint import Checkpoint, check_matches, load_checkpoint
from neurovol.networks.cnn2d import CNN2DKernel, CNN2DSpec
from neurovol.networks.normalise import Normalisation
from neurovol.networks.precision import Precision, candidates, choose_precision
from neurovol.networks.unet3d import UNet3D, UNet3DKernel, UNet3DSpec, fused
from neurovol.progress import Report, silent
from neurovol.project import Step, perform, state_of
from neurovol.stages.blockstates import watched
from neurovol.stages.cover import Cover, level_blocks, write_levels
from neurovol.stages.disk import volume_need
from neurovol.stages.memory import Demand, Room, check_window, extent_of, fitting_window, room_for
from neurovol.stages.plan import Plan
from neurovol.stages.skip import Kept, kept_of, mask_fault, where_of
from neurovol.stages.steps import Steps
from neurovol.stages.view import SampleView
from neurovol.volume.omezarr import VolumeReader, VolumeWriter, create_volume, finish_volume, open_volume, sweep_partial

TRIAL_SHAPE = (32, 64, 64)


def device() -> str:
    """Where networks run in this process: a GPU if torch sees one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def device_for(cluster: ClusterSettings) -> str:
    """Where networks predict: in jobs of a queue as these ask for it, else as torch sees it here."""
    if cluster.queued:
        return "cuda" if cluster.predicting.job.gpus else "cpu"
    return "cpu" if cluster.gpus == 0 else device()


def predicting_cluster(cluster: ClusterSettings) -> ClusterSettings:
    """The workers that predict: as set; on this machine by default one for each GPU that torch sees."""
    if cluster.kind == "local" and cluster.gpus is None and torch.cuda.device_count():
        cluster = cluster.model_copy(update={"gpus": torch.cuda.device_count()})
    return cluster.predicting


@dataclass(frozen=True)
class Prediction:
    """A network to be run over boxes of one sample: all that a plan and a run need."""

    step: Step
    view: SampleView
    image: Path
    checkpoint: Path
    boxes: tuple[Box, ...]
    window: Zyx | None  # as set; rounded up to the network's stride. None: what fits
    precision: Any  # as set: auto, fp32 or bf16
    whole: bool  # the boxes are the whole sample, so every shard exists
    in_tissue: bool = False  # and nowhere else
    device: str = "cpu"
    above: float | None = None  # then: the intensity of tissue; None: as the mask of conversion says


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
    check_halo(spec.halo, spec.reach, spec.stride)
    state = state_of(wanted.step)
    window, demand = window_planned(steps, wanted, spec)
    memory = demand.memory(window)
    cover = Cover(VolumeReader(""), _never, VolumeWriter(""), shape, wanted.boxes, window, spec.halo, spec.stride)
    kept, notes = _kept(steps, wanted, cover, blocks)
    item = wanted.view.source.dtype.itemsize * len(wanted.view.channels)
    need = volume_need(wanted.view, 1, boxes=None if wanted.whole else wanted.boxes)
    return Plan(
        wanted.step.name,
        state.kind,
        blocks=len(blocks),
        blocks_done=min(state.done, len(blocks)),
        windows=kept.windows,
        read_bytes=kept.windows * prod(demand.read(window)) * item,
        write_bytes=need.bytes,
        memory_bytes=memory.total,
        memory_terms=f"{memory.terms}; {room_for(predicting_cluster(steps.project.settings.cluster))}",
        voxels=kept.voxels,
        disk=need.left(state),
        pace=f"unet3d {demand.precision.dtype}" if isinstance(spec, UNet3DSpec) else "cnn2d",
        notes=(
            f"windows   of {list(window)}, halo {list(spec.halo)} (reach {list(spec.reach)}): "
            f"{demand.read_share(window):.3g} voxels are read for one written",
            f"store     {wanted.step.output}",
            *notes,
        ),
    )


def window_planned(steps: Steps, wanted: Prediction, spec: CNN2DSpec | UNet3DSpec) -> tuple[Zyx, Demand]:
    """The window of a prediction, and what its memory depends on; UserError where a worker has not that much.

    Those that it was begun with, if it was; what is done is refused no more.
    """
    kind, room = state_of(wanted.step).kind, room_for(predicting_cluster(steps.project.settings.cluster))
    record = read_ledger(wanted.step.ledger) if kind in ("begun", "done") else None
    precision = Precision.from_json(record.header.chosen["precision"]) if record else _likely_precision(wanted, spec)
    demand = _demand(wanted, spec, precision)
    window = zyx(record.header.chosen["window"]) if record else _window(wanted, demand, room)
    if kind != "done":
        check_window(demand, room, window, _name_of(wanted, spec, kind == "begun"))
    return window, demand


def _kept(steps: Steps, wanted: Prediction, cover: Cover, blocks: Sequence[Block]) -> tuple[Kept, tuple[str, ...]]:
    """What will be computed, as far as it is known, and what a plan says of the blocks that will not."""
    everything = Kept(len(blocks), cover.window_count(blocks), sum(box.size for box in wanted.boxes))
    if not wanted.in_tissue:
        return everything, ()
    converted = state_of(steps.convert(wanted.view.name)).kind == "done"
    if converted and (fault := mask_fault(wanted.image, wanted.above)):
        return everything, (f"skips     nothing, for it cannot: {fault}",)
    if wanted.above is not None:  # this mask is made as it is read, which is too much work for a plan
        tissue = f"without tissue, which is what exceeds {wanted.above:g}"
        return everything, (f"skips     blocks {tissue}; how many shows as they are done",)
    if not converted:
        return everything, ("skips     blocks without tissue (labels/tissue); how many is known after conversion",)
    kept = kept_of(where_of(wanted.image), blocks, wanted.boxes, cover.window, cover.stride)
    skipped = f"{len(blocks) - kept.blocks:,} of {len(blocks):,} blocks"
    return kept, (f"skips     {skipped} without tissue (labels/tissue)",)


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
    trial = partial(_precision, wanted, spec)
    tried = trial if settings.cluster.kind == "local" else partial(on_worker, client, trial)  # where it is to run
    chosen = _chosen(step, wanted, spec, room_for(predicting_cluster(settings.cluster)), tried)
    header = Header(step.name, step.inputs, sum(map(len, blocks)), chosen)
    with Ledger(step.ledger, header) as ledger:
        task = _task(ledger.header.chosen, wanted, step, spec)
        retries = settings.cluster.retries
        with watched(step, ledger.rows) as watch:
            write_levels(
                client, step.output, task, ledger, boxes, retries=retries, report=report, watch=watch, near=True
            )
        finish_volume(
            step.output,
            name=f"{view.name} {wanted.checkpoint.name}",
            attributes={"model": wanted.checkpoint.name, "boxes": [b.pairs for b in wanted.boxes], "scale": 255},
        )
        ledger.finish(voxels=sum(b.size for b in wanted.boxes))


def predicting(wanted: Prediction, on: str | None = None) -> Cover:
    """The task that wrote a finished prediction, with what was chosen then; `on` another device, if one is given."""
    record = read_ledger(wanted.step.ledger)
    assert record is not None  # it is finished
    chosen = record.header.chosen | ({} if on is None else {"device": on})
    return _task(chosen, wanted, wanted.step, spec_of(load_checkpoint(wanted.checkpoint)))


def _chosen(
    step: Step, wanted: Prediction, spec: CNN2DSpec | UNet3DSpec, room: Room, trial: Callable[[], Precision]
) -> dict[str, Any]:
    """Window and precision: those of an earlier run of this step, else as set, by what fits and by trial.

    UserError where a worker has not the memory.
    """
    record = read_ledger(step.ledger)
    precision = trial() if record is None else Precision.from_json(record.header.chosen["precision"])
    demand = _demand(wanted, spec, precision)
    window = _window(wanted, demand, room) if record is None else zyx(record.header.chosen["window"])
    check_window(demand, room, window, _name_of(wanted, spec, record is not None))
    if record is not None:
        return record.header.chosen
    return {"window": list(window), "precision": precision.to_json(), "device": wanted.device}


def _demand(wanted: Prediction, spec: CNN2DSpec | UNet3DSpec, precision: Precision) -> Demand:
    view = wanted.view
    block = fitted_shard(view.shape, view.chunk, view.shard)
    extent = extent_of(wanted.boxes, block, spec.stride)
    return Demand(spec, extent, block, view.chunk, view.source.dtype.itemsize, precision, wanted.device != "cpu")


def _window(wanted: Prediction, demand: Demand, room: Room) -> Zyx:
    """As set, else what fits."""
    if wanted.window is None:
        return fitting_window(demand, room)
    return fitted_window(wanted.window, demand.network.stride)


def _name_of(wanted: Prediction, spec: CNN2DSpec | UNet3DSpec, begun: bool) -> str:
    """Whose the window is, for people."""
    if begun:
        return f"{wanted.step.name}: the window it was begun with,"
    return "pseudolabel.window" if isinstance(spec, CNN2DSpec) else "segment.window"


def _likely_precision(wanted: Prediction, spec: CNN2DSpec | UNet3DSpec) -> Precision:
    """What a trial would choose, most likely."""
    return Precision("fp32", True) if isinstance(spec, CNN2DSpec) else candidates(wanted.precision, wanted.device)[0]


def _precision(wanted: Prediction, spec: CNN2DSpec | UNet3DSpec) -> Precision:
    """The fastest, by trial in this process."""
    if isinstance(spec, CNN2DSpec):
        return Precision("fp32", True)  # exact: dense inference must equal the patch classifier
    return choose_precision(
        lambda: fused(UNet3D(spec)),
        (1, spec.channels, *_on_stride(TRIAL_SHAPE, spec)),
        wanted.precision,
        device=wanted.device,
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
        where_of(wanted.image, wanted.above) if wanted.in_tissue else None,
    )
