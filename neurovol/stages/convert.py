"""Stage convert: a source becomes a sharded OME-Zarr with pyramid and histogram, its annotations labels."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from distributed import Client

from neurovol.blockwise.ledger import Header, Ledger
from neurovol.errors import UserError
from neurovol.geometry import Block, BlockGrid, Box, Receipt, Zyx, fitted_shard, level_factors
from neurovol.progress import Report, silent
from neurovol.project import Step, perform, state_of
from neurovol.settings import StoreSettings
from neurovol.stages.cover import label_pieces, level_blocks, write_levels
from neurovol.stages.plan import Plan
from neurovol.stages.steps import SampleView, Steps
from neurovol.volume.annotation import AnnotationReader
from neurovol.volume.histogram import Histogram
from neurovol.volume.omezarr import (
    VolumeReader,
    VolumeWriter,
    create_volume,
    finish_volume,
    open_volume,
    register_label,
    sweep_partial,
)
from neurovol.volume.source import Source


@dataclass(frozen=True)
class Convert:
    """Copies one block from the source and keeps its histogram, one file a block."""

    source: Source
    channels: tuple[int, ...]
    writer: VolumeWriter
    histograms: str

    def __call__(self, block: Block) -> Receipt:
        array = self.source.read(block.write, self.channels)
        Histogram.of(array).save(_histogram_file(Path(self.histograms), block.index))
        return self.writer.write(block.write, array)


@dataclass(frozen=True)
class Annotate:
    """Copies one block of annotations, and refuses nothing: what is unlabelled is 0."""

    reader: AnnotationReader
    writer: VolumeWriter

    def __call__(self, block: Block) -> Receipt:
        return self.writer.write(block.write, self.reader.read(block.write))


def _histogram_file(folder: Path, index: int) -> Path:
    return folder / f"{index}.npz"


def _histograms(step: Step) -> Path:
    """Where the blocks' histograms lie until they are merged."""
    return step.ledger.with_suffix(".histograms")


def plan_convert(steps: Steps, sample: str) -> list[Plan]:
    """What converting a sample would do."""
    view, store = steps.samples[sample], steps.project.settings.convert
    step = steps.convert(sample)
    state = state_of(step)
    shard = fitted_shard(view.shape, store.chunk, store.shard)
    grid = BlockGrid(view.shape, shard, shard)
    item = view.source.dtype.itemsize * len(view.channels)
    levels = len(level_factors(view.shape, view.voxel_size_um))
    plan = Plan(
        step.name,
        state.kind,
        blocks=len(grid),
        blocks_done=min(state.done, len(grid)),
        read_bytes=prod(view.shape) * item,
        write_bytes=int(prod(view.shape) * item * 8 / 7),
        memory_bytes=3 * prod(shard) * item,
        voxels=prod(view.shape) * len(view.channels),
        pace="convert",
        notes=(
            f"source    {view.source.identity()['kind']}, {view.source.dtype}, {_shape(view.shape)} voxels (z, y, x) "
            f"of {_shape(view.voxel_size_um)} µm, channels {list(view.channels)}",
            f"store     {step.output}; shards of {_shape(shard)}, {levels + 1} levels",
        ),
    )
    return [plan]


def plan_annotate(steps: Steps, sample: str, role: str) -> list[Plan]:
    """What copying a sample's annotations of one role would do."""
    step = steps.annotate(sample, role)
    boxes = steps.samples[sample].boxes(role)
    voxels = sum(box.size for box in boxes)
    note = "boxes     " + "; ".join(str([list(p) for p in box.pairs]) for box in boxes)
    state = state_of(step).kind
    return [Plan(step.name, state, voxels=voxels, write_bytes=voxels, pace="annotate", notes=(note,))]


def _shape(values: tuple[float, ...]) -> str:
    return " × ".join(f"{v:g}" for v in values)


def convert(steps: Steps, sample: str, *, client: Client, redo: bool = False, report: Report = silent) -> None:
    """Bring a sample's image to the store. UserError or Failure where that cannot be."""
    view = steps.samples[sample]
    retries = steps.project.settings.cluster.retries
    step = steps.convert(sample)
    was = step.output.exists()

    def copy_image(step: Step) -> None:
        histogram = steps.project.histogram(sample)
        _copy_image(step, view, steps.project.settings.convert, histogram, client, retries, report)

    perform(step, copy_image, redo=redo)
    if redo and was:  # the labels lay inside the old image
        for role in ("train", "test"):
            if not steps.project.label(sample, role).exists():
                steps.project.ledger(sample, f"annotate-{role}").unlink(missing_ok=True)


def _copy_image(
    step: Step,
    view: SampleView,
    store: StoreSettings,
    histogram_file: Path,
    client: Client,
    retries: int,
    report: Report,
) -> None:
    _claim(step)
    factors = level_factors(view.shape, view.voxel_size_um)
    create_volume(
        step.output,
        shape=view.shape,
        channels=len(view.channels),
        dtype=view.source.dtype,
        voxel_size_um=view.voxel_size_um,
        chunk=store.chunk,
        shard=store.shard,
        factors=factors,
    )
    sweep_partial(step.output)
    histograms = _histograms(step)
    histograms.mkdir(parents=True, exist_ok=True)
    task = Convert(view.source, view.channels, VolumeWriter(str(step.output)), str(histograms))
    blocks = level_blocks(open_volume(step.output, allow_incomplete=True))
    with Ledger(step.ledger, Header(step.name, step.inputs, sum(map(len, blocks)))) as ledger:
        write_levels(client, step.output, task, ledger, retries=retries, report=report)
        histogram = merged([_histogram_file(histograms, b.index) for b in blocks[0]], len(view.channels))
        histogram.save(histogram_file)
        low, high = histogram.constants()
        finish_volume(
            step.output,
            name=view.name,
            attributes={"normalisation": {"rule": "percentile-1-99.8", "low": list(low), "high": list(high)}},
            omero=list(zip(low, high, strict=True)),
        )
        ledger.finish(voxels=prod(view.shape), low=list(low), high=list(high))
    shutil.rmtree(histograms)


def _claim(step: Step) -> None:
    """A store without the ledger that made it belongs to something else, and is not written into."""
    if step.output.exists() and not step.ledger.exists():
        raise UserError(
            f"{step.output}: exists, but no ledger of this project made it, so it may belong to another source; "
            "move it away, or give the project another `name` or `store`"
        )
    step.ledger.parent.mkdir(parents=True, exist_ok=True)
    step.ledger.touch()  # from here on the store is known as this project's, whenever death comes


def merged(files: list[Path], channels: int) -> Histogram:
    """The blocks' histograms as one, read one at a time."""
    result = Histogram.empty(channels)
    for file in files:
        result = result.merge(Histogram.load(file))
    return result


def annotate(
    steps: Steps, sample: str, role: str, *, client: Client, redo: bool = False, report: Report = silent
) -> None:
    """Copy a sample's annotations of one role into its image's labels."""
    view, store = steps.samples[sample], steps.project.settings.convert
    retries = steps.project.settings.cluster.retries
    step = steps.annotate(sample, role)
    if state_of(step).kind == "done" and not step.output.exists():
        step.ledger.unlink()

    def copy_labels(step: Step) -> None:
        boxes = view.boxes(role)
        _create_label(step.output, view.shape, view.voxel_size_um, store)
        blocks = level_blocks(open_volume(step.output, allow_incomplete=True), boxes)
        task = Annotate(view.annotations[role], VolumeWriter(str(step.output)))
        with Ledger(step.ledger, Header(step.name, step.inputs, sum(map(len, blocks)))) as ledger:
            write_levels(client, step.output, task, ledger, boxes, how="max", retries=retries, report=report)
            finish_volume(step.output, name=role, attributes={"boxes": [b.pairs for b in boxes]}, label=True)
            counts = _label_counts(step.output, boxes)
            ledger.finish(voxels=sum(b.size for b in boxes), background=counts[1], neuron=counts[2], ignore=counts[3])

    perform(step, copy_labels, redo=redo)
    register_label(steps.project.image(sample), role)


def _label_counts(path: Path, boxes: Sequence[Box]) -> list[int]:
    """Voxels of each label in the boxes: unlabelled, background, neuron, ignore."""
    total = np.zeros(4, np.int64)
    for labels, _ in label_pieces(VolumeReader(str(path)), boxes):
        total += np.bincount(labels.ravel(), minlength=4)
    return [int(n) for n in total]


def _create_label(path: Path, shape: Zyx, voxel_size_um: tuple[float, float, float], store: StoreSettings) -> None:
    create_volume(
        path,
        shape=shape,
        channels=None,
        dtype="uint8",
        voxel_size_um=voxel_size_um,
        chunk=store.chunk,
        shard=store.shard,
        factors=level_factors(shape, voxel_size_um),
        sparse=True,
    )
