"""A sample as the steps see it: its source opened and checked, how it lies on disk, what is annotated."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from neurovol.errors import UserError
from neurovol.geometry import Box, Zyx, zyx
from neurovol.levels import chosen_shard, fitted_shard, fused_levels, level_factors
from neurovol.project import Project
from neurovol.samplesettings import Sample
from neurovol.volume.annotation import AnnotationReader, annotation_reader
from neurovol.volume.source import Source, open_source, voxel_size_of
from neurovol.volume.unpacked import needs_scratch


@dataclass(frozen=True)
class SampleView:
    """A sample as the steps see it: its source opened, its boxes checked to lie inside."""

    name: str
    source: Source
    voxel_size_um: tuple[float, float, float]
    channels: tuple[int, ...]
    chunk: Zyx
    shard: Zyx
    annotations: dict[str, AnnotationReader]  # by role, where there are any
    extra_boxes: tuple[Box, ...]

    @property
    def shape(self) -> Zyx:
        return zyx(self.source.shape[1:])

    @cached_property
    def fused(self) -> int:
        """How many pyramid levels of the image are made with level 0."""
        return fused_levels(self.shape, self.chunk, self.layout["shard"], self.layout["factors"])

    @property
    def unpacks(self) -> bool:
        """Whether slices of the source have to be decoded to scratch first."""
        return needs_scratch(self.shape, self.source.grain, self.shard)

    @property
    def voxel_bytes(self) -> int:
        """Bytes of a voxel, all channels together."""
        return self.source.dtype.itemsize * len(self.channels)

    @property
    def layout(self) -> dict[str, Any]:
        """How volumes of this sample are cut on disk: what create_volume wants to know of it."""
        factors = level_factors(self.shape, self.voxel_size_um)
        return {
            "shape": self.shape,
            "voxel_size_um": self.voxel_size_um,
            "chunk": self.chunk,
            "shard": fitted_shard(self.shape, self.chunk, self.shard),
            "factors": factors,
        }

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What determines the source's content; looked up once, as a folder may hold thousands of files."""
        identity: dict[str, Any] = plain(self.source.identity())
        return identity

    def boxes(self, role: str) -> tuple[Box, ...]:
        """Where annotations of a role lie."""
        reader = self.annotations.get(role)
        return tuple(piece.box for piece in reader.pieces) if reader else ()

    @property
    def training_boxes(self) -> tuple[Box, ...]:
        return self.boxes("train") + self.extra_boxes


def opened(sample: Sample, project: Project) -> SampleView:
    """A declared sample with all that is said of it, checked at the door."""
    settings, root = project.settings, project.root
    source = open_source(sample, root)
    shape = zyx(source.shape[1:])
    channels = sample.channels_of(source.shape[0])
    voxel_bytes = source.dtype.itemsize * len(channels)
    chunk = settings.convert.chunk
    declared = {
        role: [a for a in settings.annotations if a.sample == sample.name and a.role == role]
        for role in ("train", "test")
    }
    return SampleView(
        sample.name,
        source,
        voxel_size_of(sample, source),
        channels,
        chunk,
        settings.convert.shard or chosen_shard(shape, chunk, voxel_bytes),
        {role: annotation_reader(found, shape, source, root) for role, found in declared.items() if found},
        tuple(_inside(b.box, shape, sample.name) for b in settings.pseudolabel.boxes if b.sample == sample.name),
    )


def _inside(pairs: Any, shape: Zyx, sample: str) -> Box:
    box = Box.from_pairs(pairs)
    if not Box.of_shape(shape).contains(box):
        raise UserError(
            f'pseudolabel.boxes: {[list(p) for p in box.pairs]} lies outside the sample "{sample}", '
            f"whose shape is {list(shape)} (z, y, x); a training box must lie inside"
        )
    return box


def plain(value: Any) -> Any:
    """Tuples as lists, as they come back from a ledger."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value
