"""Stage segment: the U-Net over whole samples, and the baselines over the test boxes."""

from __future__ import annotations

from collections.abc import Set

from distributed import Client

from neurovol.errors import UserError
from neurovol.geometry import Box
from neurovol.networks.checkpoint import load_checkpoint
from neurovol.networks.cnn2d import CNN2DSpec
from neurovol.networks.unet3d import UNet3DSpec
from neurovol.progress import Report, silent
from neurovol.project import state_of
from neurovol.stages.plan import Plan
from neurovol.stages.predict import Prediction, device_for, plan_prediction, predict, window_planned
from neurovol.stages.skip import mask_fault
from neurovol.stages.steps import Steps


def segmentation(steps: Steps, sample: str) -> Prediction:
    """The U-Net trained with pseudo-labels (or the given checkpoint) over a whole sample."""
    view, settings = steps.samples[sample], steps.project.settings.segment
    return Prediction(
        steps.segment(sample),
        view,
        steps.project.image(sample),
        steps.checkpoint("unet3d_pseudo"),
        (Box.of_shape(view.shape),),
        settings.window,
        settings.precision,
        whole=True,
        in_tissue=steps.in_tissue,
        device=device_for(steps.project.settings.cluster),
        above=settings.above,
    )


def baseline(steps: Steps, sample: str, method: str) -> Prediction:
    """The 2D CNN, or the U-Net trained on annotated voxels alone, over a sample's test boxes."""
    settings = steps.project.settings
    return Prediction(
        steps.baseline(sample, method),
        steps.samples[sample],
        steps.project.image(sample),
        steps.checkpoint(method),
        steps.samples[sample].boxes("test"),
        settings.pseudolabel.window if method == "cnn2d" else settings.segment.window,
        settings.segment.precision,
        whole=False,
        in_tissue=steps.in_tissue,
        device=device_for(settings.cluster),
        above=settings.segment.above,
    )


def unet_spec(steps: Steps) -> UNet3DSpec:
    """The spec of the given checkpoint, or the one that the settings describe."""
    if not steps.trains:
        return UNet3DSpec.from_json(load_checkpoint(steps.checkpoint("unet3d_pseudo"), "unet3d").network)
    settings = steps.project.settings.train
    return UNet3DSpec(_channels(steps), settings.base_channels, settings.pooling)


def cnn_spec(steps: Steps) -> CNN2DSpec:
    return CNN2DSpec(_channels(steps), dropout=steps.project.settings.pseudolabel.dropout)


def _channels(steps: Steps) -> int:
    """How many channels a network sees: the first sample's; training refuses others of another number."""
    return len(steps.samples[steps.project.settings.samples[0].name].channels)


def plan_segment(steps: Steps, sample: str) -> list[Plan]:
    return [plan_prediction(steps, segmentation(steps, sample), unet_spec(steps))]


def plan_baseline(steps: Steps, sample: str, method: str) -> list[Plan]:
    spec = cnn_spec(steps) if method == "cnn2d" else unet_spec(steps)
    return [plan_prediction(steps, baseline(steps, sample, method), spec)]


def check_segment(steps: Steps, sample: str, redo: Set[str]) -> None:
    """Refuse what `segment` will not do: windows that workers have not the memory for, a mask that will be missing."""
    window_planned(steps, segmentation(steps, sample), unet_spec(steps))
    _check_mask(steps, sample, redo)


def check_baseline(steps: Steps, sample: str, method: str, redo: Set[str]) -> None:
    """As check_segment, of a baseline."""
    window_planned(steps, baseline(steps, sample, method), cnn_spec(steps) if method == "cnn2d" else unet_spec(steps))
    _check_mask(steps, sample, redo)


def _check_mask(steps: Steps, sample: str, redo: Set[str]) -> None:
    """Of a sample that stays as it was converted; what is converted yet, or anew, will have what is asked for."""
    convert = steps.convert(sample)
    if state_of(convert).kind == "done" and convert.name not in redo:
        need_mask(steps, sample)


def segment(steps: Steps, sample: str, *, client: Client, redo: bool = False, report: Report = silent) -> None:
    """Write the probability volume of a whole sample."""
    need(steps, "unet3d_pseudo", sample)
    need_mask(steps, sample)
    predict(steps, segmentation(steps, sample), client=client, redo=redo, report=report)


def predict_baseline(
    steps: Steps, sample: str, method: str, *, client: Client, redo: bool = False, report: Report = silent
) -> None:
    """Write a baseline's probabilities over a sample's test boxes."""
    need(steps, method, sample)
    need_mask(steps, sample)
    predict(steps, baseline(steps, sample, method), client=client, redo=redo, report=report)


def need(steps: Steps, method: str, sample: str) -> None:
    """Refuse to predict before model and image are there, and say what makes them."""
    checkpoint = steps.checkpoint(method)
    if steps.trains and not (checkpoint / "checkpoint.json").exists():
        stage = "pseudolabel" if method == "cnn2d" else "train"
        raise UserError(
            f"{checkpoint}: no finished model with the settings that {steps.project.file} gives; "
            f"run `neurovol {stage}` first, or `neurovol run` for everything"
        )
    need_image(steps, sample)


def need_image(steps: Steps, sample: str) -> None:
    if state_of(steps.convert(sample)).kind != "done":
        raise UserError(
            f"{steps.project.image(sample)}: the sample is not converted yet; "
            "run `neurovol convert` first, or `neurovol run` for everything"
        )


def need_mask(steps: Steps, sample: str) -> None:
    """Refuse to predict in tissue alone for a converted sample where none can be told, and say what mends it."""
    above = steps.project.settings.segment.above
    if steps.in_tissue and (fault := mask_fault(steps.project.image(sample), above)):
        raise UserError(fault)
