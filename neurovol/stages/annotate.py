"""Stage annotate: what experts drew becomes label images beside the sample's image."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from distributed import Client

from neurovol.blockwise.ledger import Header, Ledger
from neurovol.geometry import Block, Box, Receipt
from neurovol.progress import Report, silent
from neurovol.project import Step, perform, state_of
from neurovol.stages.blockstates import watched
from neurovol.stages.cover import label_pieces, level_blocks, write_levels
from neurovol.stages.disk import annotation_need
from neurovol.stages.plan import Plan
from neurovol.stages.steps import Steps
from neurovol.volume.annotation import AnnotationReader, check_crops
from neurovol.volume.omezarr import (
    VolumeReader,
    VolumeWriter,
    create_volume,
    finish_volume,
    open_volume,
    register_label,
)


@dataclass(frozen=True)
class Annotate:
    """Copies one block of annotations, and refuses nothing: what is unlabelled is 0."""

    reader: AnnotationReader
    writer: VolumeWriter
    instances: VolumeWriter | None = None  # for the numbers of single neurons, where the annotation has them

    def __call__(self, block: Block) -> Receipt:
        if self.instances is not None:
            self.instances.write(block.write, self.reader.read_instances(block.write))
        return self.writer.write(block.write, self.reader.read(block.write))


def plan_annotate(steps: Steps, sample: str, role: str) -> list[Plan]:
    """What copying a sample's annotations of one role would do."""
    step = steps.annotate(sample, role)
    boxes = steps.samples[sample].boxes(role)
    voxels = sum(box.size for box in boxes)
    note = "boxes     " + "; ".join(str([list(p) for p in box.pairs]) for box in boxes)
    state, need = state_of(step), annotation_need(steps.samples[sample], role)
    return [
        Plan(
            step.name,
            state.kind,
            voxels=voxels,
            write_bytes=need.bytes,
            pace="annotate",
            disk=need.left(state),
            notes=(note,),
        )
    ]


def annotate(
    steps: Steps, sample: str, role: str, *, client: Client, redo: bool = False, report: Report = silent
) -> None:
    """Copy a sample's annotations of one role into its image's labels."""
    view, retries = steps.samples[sample], steps.project.settings.cluster.retries
    step, reader = steps.annotate(sample, role), view.annotations[role]

    def copy_labels(step: Step) -> None:
        boxes = view.boxes(role)
        check_crops(reader, view.source, view.channels[0])
        create_volume(step.output, channels=None, dtype="uint8", sparse=True, **view.layout)
        instances = instances_of(step.output) if reader.has_instances else None
        if instances is not None:
            create_volume(instances, channels=None, dtype="uint32", sparse=True, **{**view.layout, "factors": ()})
        blocks = level_blocks(open_volume(step.output, allow_incomplete=True), boxes)
        task = annotating(reader, step.output)
        header = Header(step.name, step.inputs, sum(map(len, blocks)))
        with Ledger(step.ledger, header) as ledger:
            with watched(step, ledger.rows) as watch:
                write_levels(
                    client, step.output, task, ledger, boxes, how="max", retries=retries, report=report, watch=watch
                )
            recorded = {"boxes": [b.pairs for b in boxes]}
            if instances is not None:
                finish_volume(instances, name=f"{role}-instances", attributes=recorded, label=True)
            finish_volume(step.output, name=role, attributes=recorded, label=True)
            counts = _label_counts(step.output, boxes)
            ledger.finish(voxels=sum(b.size for b in boxes), background=counts[1], neuron=counts[2], ignore=counts[3])

    perform(step, copy_labels, redo=redo)
    register_label(steps.project.image(sample), role)
    if reader.has_instances:
        _move_in(instances_of(step.beside.output), instances_of(step.output))
        register_label(steps.project.image(sample), f"{role}-instances")


def annotating(reader: AnnotationReader, output: Path) -> Annotate:
    """The task that copies annotations to a label image, and the numbers of single neurons beside it."""
    instances = VolumeWriter(str(instances_of(output))) if reader.has_instances else None
    return Annotate(reader, VolumeWriter(str(output)), instances)


def _move_in(beside: Path, place: Path) -> None:
    """Put numbers that were built anew, beside the old ones, in their place."""
    if beside.exists():
        shutil.rmtree(place, ignore_errors=True)
        beside.rename(place)


def instances_of(label: Path) -> Path:
    """Where the numbers of single neurons lie, beside the label image that they go with."""
    return label.with_name(f"{label.name}-instances")


def _label_counts(path: Path, boxes: Sequence[Box]) -> list[int]:
    """Voxels of each label in the boxes: unlabelled, background, neuron, ignore."""
    total = np.zeros(4, np.int64)
    for labels, _ in label_pieces(VolumeReader(str(path)), boxes):
        total += np.bincount(labels.ravel(), minlength=4)
    return [int(n) for n in total]
