"""Settings of samples: those that a project file declares, and those that arrive in its inbox."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from neurovol.fields import FilePath, FilePaths, Name, PositiveZyx, Section, VoxelSize

Channels = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]


class Phantom(Section):
    """A made-up sample with known truth, in place of `source` (see neurovol.volume.phantom)."""

    shape: PositiveZyx = Field((64, 256, 256), description="Voxels along z, y, x")
    seed: int = Field(0, ge=0, description="Same seed, same sample")
    contrast: float = Field(1.0, gt=0, le=4, description="Brightness of the cells against the tissue; 1 is typical")


class Sample(Section):
    """One piece of tissue: where its stack lies and how large its voxels are."""

    name: Name = Field(description="Name of the sample, also of its folder")
    source: FilePaths | None = Field(
        None,
        description="TIFF file, or folder with one TIFF per z-slice, relative to the project file; "
        "a list of them where channels lie apart",
    )
    phantom: Phantom | None = Field(None, description="A phantom in place of a source")
    voxel_size_um: VoxelSize | None = Field(None, description="z, y, x in µm; default: what the source says")
    channels: Channels | None = Field(
        None, description="Channels to convert; default the first, of a list of sources all"
    )

    @model_validator(mode="after")
    def _one_kind_of_source(self) -> Sample:
        if (self.source is None) == (self.phantom is None):
            raise ValueError("give either `source` or `phantom`, exactly one of them")
        if self.channels is not None and len(set(self.channels)) != len(self.channels):
            raise ValueError(f"channels {self.channels} repeat one another")
        return self

    def channels_of(self, available: int) -> tuple[int, ...]:
        """The channels to convert of a source that has so many.

        >>> Sample(name="s", source=["ch0.tif", "ch1.tif"]).channels_of(2)
        (0, 1)
        >>> Sample(name="s", source="colour.tif").channels_of(3)
        (0,)
        """
        if self.channels is not None:
            return self.channels
        return tuple(range(available)) if len(self.source or ()) > 1 else (0,)


class Template(Section):
    """What is said of every sample that arrives, as of a declared one."""

    voxel_size_um: VoxelSize | None = Field(None, description="z, y, x in µm; default: what the source says")
    channels: Channels | None = Field(None, description="Channels to convert; default the first")


class InboxSettings(Section):
    """A drop folder: whatever arrives there completely is converted, segmented and reported."""

    folder: FilePath = Field(
        description="Each file or folder directly in it is a sample, called as the file without its extension; "
        "relative to the project file"
    )
    model: FilePath = Field(
        description="The trained model: the name of one under models/ of the store, or the path of its folder"
    )
    settle_s: int = Field(
        300, ge=1, description="A sample is complete when none of its files has changed for so many seconds"
    )
    marker: Name | None = Field(
        None,
        description="In place of settle_s: a sample is complete when a file of this name lies in its folder; of a "
        "sample that is a file, beside it as SAMPLE.tif.MARKER",
    )
    sample: Template = Field(Template(), description="What is said of every sample that arrives")

    @model_validator(mode="after")
    def _one_rule(self) -> InboxSettings:
        if self.marker is not None and "settle_s" in self.model_fields_set:
            raise ValueError(
                f'give `marker` ("{self.marker}") or `settle_s` ({self.settle_s}), not both: either tells by itself '
                "when a sample is complete"
            )
        return self
