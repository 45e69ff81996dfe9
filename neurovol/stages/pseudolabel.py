"""Stage pseudolabel: the 2D CNN learns from annotated pixels, then labels what nobody labelled."""

from __future__ import annotations

from collections.abc import Set

from distributed import Client

from neurovol.networks.cnn2d import CNN2D
from neurovol.networks.precision import choose_precision
from neurovol.progress import Report, silent
from neurovol.project import Step, perform, state_of
from neurovol.stages.disk import NOTHING, weights_need
from neurovol.stages.learn import Lesson, learn, training_samples
from neurovol.stages.plan import Plan
from neurovol.stages.predict import Prediction, device, device_for, plan_prediction, predict, window_planned
from neurovol.stages.segment import cnn_spec, need
from neurovol.stages.steps import Steps
from neurovol.training.loss import pixel_loss
from neurovol.training.pixels import PixelStream


def pseudolabels(steps: Steps, sample: str) -> Prediction:
    """The 2D CNN over a sample's training boxes, or all of it."""
    settings = steps.project.settings.pseudolabel
    return Prediction(
        steps.pseudolabel(sample),
        steps.samples[sample],
        steps.project.image(sample),
        steps.learn_cnn2d().output,
        steps.inferred(sample),
        settings.window,
        "fp32",
        whole=settings.whole_samples,
        device=device_for(steps.project.settings.cluster),
    )


def plan_learn(steps: Steps) -> list[Plan]:
    """What training the 2D CNN would do."""
    step, settings = steps.learn_cnn2d(), steps.project.settings.pseudolabel
    note = f"training  {settings.steps:,} steps of {settings.batch} pixels; model {step.output.name}"
    state, disk = state_of(step), weights_need(cnn_spec(steps).weight_bytes)
    return [Plan(step.name, state.kind, disk=disk if state.kind != "done" else NOTHING, notes=(note,))]


def plan_pseudolabel(steps: Steps, sample: str) -> list[Plan]:
    """What inferring a sample's pseudo-labels would do."""
    return [plan_prediction(steps, pseudolabels(steps, sample), cnn_spec(steps))]


def check_pseudolabel(steps: Steps, sample: str, _: Set[str]) -> None:
    """Refuse windows that workers have not the memory for."""
    window_planned(steps, pseudolabels(steps, sample), cnn_spec(steps))


def learn_cnn2d(steps: Steps, *, redo: bool = False, report: Report = silent) -> None:
    """Train the 2D CNN on annotated pixels, as many of neurons as of background.

    It learns in the driver's own process.
    """
    settings = steps.project.settings.pseudolabel
    step = steps.learn_cnn2d()

    def work(step: Step) -> None:
        samples = training_samples(steps, pseudo=False)
        stream = PixelStream(samples, settings.batch, settings.seed)
        spec = cnn_spec(steps)
        lesson = Lesson(
            step,
            "cnn2d",
            spec,
            lambda: CNN2D(spec),
            stream.batch,
            pixel_loss,
            settings.steps,
            settings.learning_rate,
            max(1, settings.steps // 5),
            settings.seed,
            lambda: choose_precision(
                lambda: CNN2D(spec),
                (settings.batch, spec.channels, spec.patch, spec.patch),
                settings.precision,
                True,
                device(),
            ),
            steps.samples[samples[0].name].voxel_size_um,
            stream.log_prior_odds if settings.prior == "corrected" else 0.0,
        )
        learn(lesson, step, report)

    perform(step, work, redo=redo)
    steps.project.promote("cnn2d", step.output.name)


def pseudolabel(steps: Steps, sample: str, *, client: Client, redo: bool = False, report: Report = silent) -> None:
    """Infer a sample's pseudo-labels, block by block."""
    need(steps, "cnn2d", sample)
    predict(steps, pseudolabels(steps, sample), client=client, redo=redo, report=report)
