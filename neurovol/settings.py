"""What a project file, the command line and Prefect's form share: every setting, its default, its rule.

Defaults exist here and nowhere else. Models are frozen; lengths are voxels unless a name says µm.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from neurovol.clustersettings import ClusterSettings
from neurovol.errors import UserError
from neurovol.fields import BoxPairs, FilePath, Name, PositiveZyx, Section, Zyx, expanded
from neurovol.geometry import Box, round_up
from neurovol.samplesettings import InboxSettings, Sample


class AnnotationValues(Section):
    """What the annotation's values mean; any other value is unlabelled. An ROI set reads as 1 inside, 0 outside."""

    background: int = Field(0, description="Value of annotated background")
    neuron: int | Literal["instances"] = Field(
        1,
        description='Value of neurons; "instances": any value above 0 without another meaning numbers a neuron',
    )
    ignore: int | None = Field(None, description="Value of voxels never learned from and never scored")

    @model_validator(mode="after")
    def _all_differ(self) -> AnnotationValues:
        given = [v for v in (self.background, self.neuron, self.ignore) if v is not None]
        if len(set(given)) != len(given):
            raise ValueError(f"background, neuron and ignore must differ; they are {given}")
        return self


class Annotation(Section):
    """What an expert drew: an image of labels or a set of outlines, and where it lies in its sample."""

    sample: Name = Field(description="The sample it belongs to")
    source: Annotated[str, AfterValidator(expanded)] = Field(
        description="TIFF, folder of slices, ImageJ ROI set (.roi, .zip, or a folder of .roi) or OME-Zarr labels; "
        '"phantom" for a phantom\'s truth'
    )
    box: BoxPairs | None = Field(None, description="Where it lies: z, y, x ranges; default the whole sample")
    slices: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None, description="Annotated planes, counted within the box; default all. An ROI set needs them, or `every`"
    )
    every: int | None = Field(None, ge=1, description="Every n-th plane is annotated, from the first")
    values: AnnotationValues = AnnotationValues()
    crop: Annotated[str, AfterValidator(expanded)] | None = Field(
        None,
        description="TIFF of the raw image it was drawn on, of the shape of its box or of the whole sample; "
        "where the sample differs from it, the annotation is refused",
    )
    role: Literal["train", "test"] = Field("train", description='"test": evaluated, never seen in training')

    @model_validator(mode="after")
    def _slices_or_every(self) -> Annotation:
        if self.slices is not None and self.every is not None:
            raise ValueError("give `slices` or `every`, not both")
        return self


class TrainingBox(Section):
    """A box to learn from by pseudo-labels, beside the boxes of the train annotations."""

    sample: Name
    box: BoxPairs


class PseudolabelSettings(Section):
    """The light 2D CNN: trained on annotated pixels, it labels what nobody labelled."""

    steps: int = Field(1500, ge=1, description="Training steps")
    batch: int = Field(256, ge=2, description="Pixels per step, half of them neurons")
    learning_rate: float = Field(1e-3, gt=0, description="Adam's learning rate")
    dropout: float = Field(0.5, ge=0, lt=1, description="Dropout after the fully connected layers")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="Arithmetic of training; auto: the faster in a short trial at start, recorded"
    )
    prior: Literal["corrected", "balanced"] = Field(
        "corrected",
        description="Training draws as many neuron as background pixels; "
        '"corrected" shifts the log-odds back to the annotated share, "balanced" does not',
    )
    seed: int = Field(0, ge=0, description="Same seed, same network")
    window: PositiveZyx | None = Field(
        None,
        description="Voxels inferred at once; default what reads least for a block, within cluster.allowed_bytes",
    )
    boxes: tuple[TrainingBox, ...] = Field((), description="Further training boxes, without annotations of their own")
    whole_samples: bool = Field(False, description="Infer whole samples rather than the training boxes")


class TrainSettings(Section):
    """The 3D U-Net and how it is trained on annotated and pseudo-labelled voxels."""

    alpha: float = Field(0.3, ge=0, le=1, description="Weight of a pseudo-labelled voxel; an annotated one weighs 1")
    pseudo_labels: Literal["hard", "soft"] = Field(
        "hard", description="Threshold pseudo-labels at 0.5, or keep probabilities"
    )
    steps: int = Field(2000, ge=1, description="Training steps")
    batch: int = Field(8, ge=1, description="Patches per step")
    patch: PositiveZyx = Field((32, 64, 64), description="Voxels of a patch, z, y, x")
    annotated_share: float = Field(0.5, ge=0, le=1, description="Share of patches drawn around annotated voxels")
    learning_rate: float = Field(1e-3, gt=0, description="Adam's learning rate")
    base_channels: int = Field(16, ge=1, description="Channels at full resolution; doubled at each pooling")
    pooling: tuple[PositiveZyx, ...] = Field(
        ((2, 2, 2), (2, 2, 2)), min_length=1, max_length=5, description="Max-pooling per level, z, y, x"
    )
    augment: bool = Field(True, description="Flips, rotations in the plane, brightness, gamma, noise, blur")
    test_gap: int = Field(0, ge=0, description="Voxels around test boxes that are not learned from either")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="Arithmetic; auto: the faster in a short trial at start, recorded"
    )
    checkpoint_every: int = Field(200, ge=1, description="Steps between checkpoints")
    seed: int = Field(0, ge=0, description="Same seed, same network")

    @model_validator(mode="after")
    def _patch_on_stride(self) -> TrainSettings:
        for axis, name in enumerate("zyx"):
            stride = 1
            for pool in self.pooling:
                stride *= pool[axis]
            if self.patch[axis] % stride:
                raise ValueError(
                    f"patch {self.patch} along {name} is not a multiple of the network's stride {stride}; "
                    f"use {round_up(self.patch[axis], stride)}"
                )
        return self


class SegmentSettings(Section):
    """The U-Net over whole samples, window by window."""

    checkpoint: FilePath | None = Field(None, description="A trained model's folder, in place of training")
    window: PositiveZyx | None = Field(
        None,
        description="Voxels written per window, whose read is larger by the halo; default what reads least for a "
        "block, within cluster.allowed_bytes",
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="Arithmetic; auto: the faster in a short trial at start, recorded"
    )
    samples: tuple[Name, ...] | None = Field(None, description="Samples to cover; default all")
    where: Literal["all", "tissue"] = Field(
        "all",
        description='"tissue": only where the mask of conversion has tissue (labels/tissue), which saves the time of '
        "empty blocks; elsewhere the probability is 0, which is background, for the baselines that it is scored "
        "beside as well. Pseudo-labels are inferred all the same",
    )
    above: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description='With where = "tissue": the intensity above which a voxel at the mask\'s level is tissue, in any '
        "channel, in the image's own units and in place of what conversion found; needs no mask of conversion",
    )

    @model_validator(mode="after")
    def _above_in_tissue(self) -> SegmentSettings:
        if self.above is not None and self.where == "all":
            raise ValueError(f'`above` = {self.above:g} says what tissue is; it goes with where = "tissue"')
        return self


class EvaluateSettings(Section):
    """How predictions are scored on the test annotations."""

    threshold: float = Field(0.5, gt=0, lt=1, description="A voxel is neuron if its probability is at least this")

    reference: str = Field(
        "",
        description="What the test annotations are, if not an expert's own drawing; shown beside every figure",
    )


class StoreSettings(Section):
    """How sources become volumes of the store, and how these are cut into chunks and shards on disk."""

    chunk: PositiveZyx = Field((32, 64, 64), description="What is compressed at once, z, y, x")
    shard: PositiveZyx | None = Field(
        None,
        description="What lies in one file, z, y, x; whole chunks. Default: the smallest from 4 × 4 × 4 chunks on "
        "with at most 10,000 files (beyond a terabyte 10,000 per terabyte)",
    )
    codec: Literal["auto", "lz4", "zstd"] = Field(
        "auto",
        description="How images are compressed; lz4 is the faster, zstd the smaller, auto the better by measurement: "
        "lz4 for 16 bit, zstd for 8 bit",
    )
    on_bad_slice: Literal["error", "fill"] = Field(
        "error", description='A slice that cannot be read ends the conversion; "fill" puts zeros and records it'
    )
    scratch: FilePath | None = Field(
        None, description="Folder for decoded slices of compressed sources; default beside the volume"
    )
    allowed_bytes: int = Field(
        3_000_000_000, ge=500_000_000, description="Memory of a conversion, all its workers together"
    )
    tissue: bool = Field(True, description="Write a mask of where tissue is, at about 8 µm, as labels/tissue")
    preview: bool = Field(True, description="Write preview.png, the maximum along z of a coarse level")

    @model_validator(mode="after")
    def _whole_chunks(self) -> StoreSettings:
        for s, c in zip(self.shard or self.chunk, self.chunk, strict=True):
            if s % c:
                raise ValueError(f"shard {self.shard} is not a whole number of chunks {self.chunk}")
        return self


class ProjectSettings(Section):
    """A whole project file."""

    name: Name = Field(description="Name of the project, also of its folder in the store")
    store: FilePath = Field(Path("stores"), description="Where everything goes, relative to the project file")
    samples: tuple[Sample, ...] = Field((), description="The samples; none where all of them arrive in the inbox")
    annotations: tuple[Annotation, ...] = ()
    convert: StoreSettings = StoreSettings()
    pseudolabel: PseudolabelSettings = PseudolabelSettings()
    train: TrainSettings = TrainSettings()
    segment: SegmentSettings = SegmentSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    cluster: ClusterSettings = ClusterSettings()
    inbox: InboxSettings | None = Field(None, description="Where samples arrive by themselves, and their model")

    @model_validator(mode="after")
    def _names_match(self) -> ProjectSettings:
        if not self.samples and self.inbox is None:
            raise ValueError("declares no sample; give [[samples]], or an [inbox] that samples arrive in")
        names = [s.name for s in self.samples]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f'two samples are called "{name}"; names must differ')
        named = [("annotations", a.sample) for a in self.annotations]
        named += [("pseudolabel.boxes", b.sample) for b in self.pseudolabel.boxes]
        named += [("segment.samples", s) for s in self.segment.samples or ()]
        for where, name in named:
            if name not in names:
                raise ValueError(
                    f'{where} names the sample "{name}", which is not declared; declared are {", ".join(names)}'
                )
        if self.segment.where == "tissue" and self.segment.above is None and not self.convert.tissue:
            raise ValueError(
                'segment.where = "tissue" needs the mask that convert.tissue = false leaves out; set convert.tissue = '
                "true, or give the intensity of tissue as segment.above"
            )
        phantoms = {s.name for s in self.samples if s.phantom is not None}
        for a in self.annotations:
            if a.source == "phantom" and a.sample not in phantoms:
                raise ValueError(f'annotation source "phantom" needs a phantom sample; "{a.sample}" is none')
        return self

    def sample(self, name: str) -> Sample:
        """The sample of that name; a UserError where there is none."""
        for sample in self.samples:
            if sample.name == name:
                return sample
        raise UserError(f'there is no sample "{name}"; the project declares {", ".join(s.name for s in self.samples)}')


class Overrides(Section):
    """Sections to use in place of the project file's; those left out are as the file says."""

    convert: StoreSettings | None = Field(None, description="Chunks and shards of the store")
    pseudolabel: PseudolabelSettings | None = Field(None, description="The 2D CNN and its pseudo-labels")
    train: TrainSettings | None = Field(None, description="The 3D U-Net's training")
    segment: SegmentSettings | None = Field(None, description="The U-Net over whole samples")
    evaluate: EvaluateSettings | None = Field(None, description="Scoring on the test annotations")
    cluster: ClusterSettings | None = Field(None, description="Where blocks are computed")

    @property
    def tables(self) -> dict[str, Any]:
        """The sections given, as tables of a project file."""
        return self.model_dump(mode="json", exclude_none=True)


def box_of(pairs: BoxPairs | None, whole: Zyx) -> Box:
    """The box that a setting declares, the whole volume by default."""
    return Box.from_pairs(pairs) if pairs is not None else Box.of_shape(whole)
