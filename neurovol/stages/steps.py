"""Every step of a project with all that determines its result, in the order they are taken.

Inputs are flat and spelled out, so that a stale step can say what changed; a step that builds on
another holds that one's fingerprint. What cannot change a result (windows, workers) is left out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from neurovol.fields import Section
from neurovol.geometry import Box
from neurovol.project import Project, Step
from neurovol.stages.view import SampleView, opened, plain
from neurovol.volume.tissue import VERSION as TISSUE_VERSION

# Raised whenever a stage would write other bytes from the same inputs.
VERSIONS = {"convert": 3, "annotate": 1, "pseudolabel": 1, "train": 1, "segment": 1, "evaluate": 1, "report": 1}

BASELINES = ("cnn2d", "unet3d_sparse")


@dataclass(frozen=True)
class Steps:
    """The steps of one project; sources are opened once, on first need."""

    project: Project

    @cached_property
    def samples(self) -> dict[str, SampleView]:
        return {s.name: opened(s, self.project) for s in self.project.settings.samples}

    def with_role(self, role: str) -> list[str]:
        """The samples that have annotations of a role."""
        return [name for name, view in self.samples.items() if role in view.annotations]

    @property
    def to_learn_from(self) -> list[str]:
        return [name for name, view in self.samples.items() if view.training_boxes]

    @property
    def to_segment(self) -> list[str]:
        chosen = self.project.settings.segment.samples
        return [name for name in self.samples if chosen is None or name in chosen]

    @property
    def to_cover(self) -> list[str]:
        """Samples that need the U-Net: those asked for, and those with test annotations."""
        wanted = set(self.to_segment) | set(self.with_role("test"))
        return [name for name in self.samples if name in wanted]

    @property
    def trains(self) -> bool:
        """False where a given checkpoint replaces training."""
        return self.project.settings.segment.checkpoint is None

    @property
    def predicts(self) -> bool:
        """True where there is, or will be, a network to predict with."""
        return bool(self.to_learn_from) or not self.trains

    @property
    def methods(self) -> tuple[str, ...]:
        return ("cnn2d", "unet3d_sparse", "unet3d_pseudo") if self.trains else ("unet3d_pseudo",)

    def convert(self, sample: str) -> Step:
        view = self.samples[sample]
        inputs = {
            "source": view.identity,
            "voxel_size_um": list(view.voxel_size_um),
            "channels": list(view.channels),
            "convert.chunk": list(view.chunk),
            "convert.shard": list(view.shard),
            "convert.codec": self.project.settings.convert.codec,
            "convert.on_bad_slice": self.project.settings.convert.on_bad_slice,
            "version": VERSIONS["convert"],
        }
        return self._sample_step("convert", sample, sample, inputs, "convert", self.project.image(sample))

    def annotate(self, sample: str, role: str) -> Step:
        view = self.samples[sample]
        inputs = {
            "annotations": plain(view.annotations[role].identity()),
            "sample.shape": list(view.shape),
            "convert.chunk": list(view.chunk),
            "convert.shard": list(view.shard),
            "version": VERSIONS["annotate"],
        }
        output = self.project.label(sample, role)
        step = self._sample_step("annotate", sample, f"{sample} {role}", inputs, f"annotate-{role}", output)
        return replace(step, inside=True)

    def _sample_step(
        self, stage: str, sample: str, subject: str, inputs: dict[str, Any], name: str, output: Path
    ) -> Step:
        """A step that covers a sample with blocks; `name` is what its ledger is called."""
        progress = self.project.progress(sample, name)
        return Step(stage, subject, inputs, self.project.ledger(sample, name), output, progress=progress)

    def _learning(self) -> dict[str, Any]:
        """What any network of the project learns from."""
        inputs: dict[str, Any] = {}
        for name in self.to_learn_from:
            view = self.samples[name]
            inputs[f"{name} training boxes"] = [b.pairs for b in view.training_boxes]
            inputs[f"{name} test boxes"] = [b.pairs for b in view.boxes("test")]
            inputs[f"{name} image"] = self.convert(name).fingerprint
            if "train" in view.annotations:
                inputs[f"{name} annotations"] = self.annotate(name, "train").fingerprint
        result: dict[str, Any] = plain(inputs)
        return result

    def learn_cnn2d(self) -> Step:
        """The 2D CNN."""
        settings = self.project.settings.pseudolabel
        inputs = {
            **_flat("pseudolabel", settings, without=("window", "boxes", "whole_samples")),
            "train.test_gap": self.project.settings.train.test_gap,
            **self._learning(),
            "version": VERSIONS["pseudolabel"],
        }
        return self._model_step("pseudolabel", "cnn2d", inputs)

    def pseudolabel(self, sample: str) -> Step:
        """The 2D CNN's probabilities over a sample's training boxes, or all of it."""
        model = self.learn_cnn2d()
        inputs = {
            "image": self.convert(sample).fingerprint,
            "model": model.fingerprint,
            "boxes": [b.pairs for b in self.inferred(sample)],
            "version": VERSIONS["pseudolabel"],
        }
        model_name = model.output.name
        output = self.project.probabilities(sample, model_name)
        return self._sample_step("pseudolabel", sample, sample, plain(inputs), f"pseudolabel@{model_name}", output)

    def inferred(self, sample: str) -> tuple[Box, ...]:
        """The boxes that the 2D CNN labels."""
        view = self.samples[sample]
        whole = self.project.settings.pseudolabel.whole_samples
        return (Box.of_shape(view.shape),) if whole else view.training_boxes

    def learn_unet3d(self, method: str) -> Step:
        """A U-Net: `unet3d_pseudo`, or the baseline `unet3d_sparse` on the annotated voxels alone."""
        only_pseudo = ("alpha", "pseudo_labels", "annotated_share") if method == "unet3d_sparse" else ()
        inputs = {**_flat("train", self.project.settings.train, without=("checkpoint_every", *only_pseudo))}
        inputs |= {**self._learning(), "method": method, "version": VERSIONS["train"]}
        if method == "unet3d_pseudo":
            inputs |= {f"{n} pseudo-labels": self.pseudolabel(n).fingerprint for n in self.to_learn_from}
        return self._model_step("train", method, inputs)

    def _model_step(self, stage: str, method: str, inputs: dict[str, Any]) -> Step:
        digest = Step(stage, method, inputs, Path(), Path()).fingerprint
        folder = self.project.model(method, digest)
        current = self.project.current.get(method)
        ledgers = self.project.folder / "ledgers"
        replaces = ledgers / f"{current}.jsonl" if current and current != folder.name else None
        return Step(stage, method, inputs, ledgers / f"{folder.name}.jsonl", folder, replaces)

    def checkpoint(self, method: str) -> Path:
        """The folder of the model that a method predicts with."""
        if not self.trains:
            return self.project.root / str(self.project.settings.segment.checkpoint)
        return (self.learn_cnn2d() if method == "cnn2d" else self.learn_unet3d(method)).output

    def _weights(self, method: str) -> str:
        """What identifies a method's weights: its training's inputs, or a given checkpoint's own hash."""
        if self.trains:
            return (self.learn_cnn2d() if method == "cnn2d" else self.learn_unet3d(method)).fingerprint
        from neurovol.networks.checkpoint import weights_sha256

        return weights_sha256(self.checkpoint(method))

    @property
    def in_tissue(self) -> bool:
        """Whether what is scored is predicted in tissue alone: the U-Net and the baselines alike."""
        return self.project.settings.segment.where == "tissue"

    def segment(self, sample: str) -> Step:
        """The U-Net over a whole sample."""
        return self._prediction("segment", sample, "unet3d_pseudo", f"{sample}", test_boxes=False)

    def baseline(self, sample: str, method: str) -> Step:
        """A baseline over a sample's test boxes."""
        return self._prediction("evaluate", sample, method, f"{sample} {method}", test_boxes=True)

    def _prediction(self, stage: str, sample: str, method: str, subject: str, *, test_boxes: bool) -> Step:
        model = self.checkpoint(method).name
        inputs = {
            "image": self.convert(sample).fingerprint,
            "weights": self._weights(method),
            "segment.precision": self.project.settings.segment.precision,
            "version": VERSIONS["segment"],
        }
        if self.in_tissue:  # left out otherwise, so that samples done before it existed stay done
            inputs |= {"segment.where": "tissue", "tissue.version": TISSUE_VERSION}
            if (above := self.project.settings.segment.above) is not None:
                inputs["segment.above"] = above
        if test_boxes:
            inputs["boxes"] = [b.pairs for b in self.samples[sample].boxes("test")]
        output = self.project.probabilities(sample, model, test_boxes=test_boxes)
        return self._sample_step(stage, sample, subject, plain(inputs), f"{stage}@{model}", output)

    def predictions(self, sample: str) -> dict[str, Step]:
        """The steps whose outputs are scored on a sample, by method."""
        return {m: self.segment(sample) if m == "unet3d_pseudo" else self.baseline(sample, m) for m in self.methods}

    def evaluate(self) -> Step:
        inputs: dict[str, Any] = {**_flat("evaluate", self.project.settings.evaluate), "version": VERSIONS["evaluate"]}
        for name in self.with_role("test"):
            inputs[f"{name} annotations"] = self.annotate(name, "test").fingerprint
            inputs |= {f"{name} {m}": step.fingerprint for m, step in self.predictions(name).items()}
        return Step("evaluate", "", inputs, self.project.folder / "ledgers" / "evaluate.jsonl", self.project.metrics)

    @property
    def unets(self) -> tuple[str, ...]:
        """The U-Nets to train; the baseline only where there is something to compare on."""
        return ("unet3d_pseudo", "unet3d_sparse") if self.with_role("test") else ("unet3d_pseudo",)

    def report(self) -> Step:
        inputs: dict[str, Any] = {"version": VERSIONS["report"], "name": self.project.settings.name}
        inputs |= {f"{name} image": self.convert(name).fingerprint for name in self.samples}
        if self.trains and self.to_learn_from:
            inputs |= {m: self.learn_unet3d(m).fingerprint for m in self.unets}
        if self.predicts:
            inputs |= {f"{name} segment": self.segment(name).fingerprint for name in self.to_cover}
        if self.with_role("test"):
            inputs["evaluate"] = self.evaluate().fingerprint
        return Step("report", "", inputs, self.project.report_ledger, self.project.report)


def _flat(section: str, settings: Section, without: tuple[str, ...] = ()) -> dict[str, Any]:
    dumped = settings.model_dump(mode="json", exclude=set(without))
    return {f"{section}.{key}": value for key, value in dumped.items()}
