"""Stage train: the 3D U-Net on annotated and pseudo-labelled voxels, and its baseline on the annotated ones alone."""

from __future__ import annotations

from neurovol.networks.precision import choose_precision
from neurovol.networks.unet3d import UNet3D
from neurovol.progress import Report, silent
from neurovol.project import Step, perform, state_of
from neurovol.stages.disk import NOTHING, weights_need
from neurovol.stages.learn import Lesson, learn, touching, training_samples
from neurovol.stages.plan import Plan
from neurovol.stages.predict import device
from neurovol.stages.segment import unet_spec
from neurovol.stages.steps import Steps
from neurovol.training.loss import voxel_loss
from neurovol.training.patches import PatchStream


def plan_train(steps: Steps, method: str) -> list[Plan]:
    """What training a U-Net would do."""
    step, settings = steps.learn_unet3d(method), steps.project.settings.train
    voxels = settings.batch * settings.patch[0] * settings.patch[1] * settings.patch[2]
    # measured: about 350 bytes of activations per voxel in fp32, forward and backward, at 16 base channels
    memory = voxels * 350 * settings.base_channels // 16
    notes = (
        f"training  {settings.steps:,} steps of {settings.batch} patches of {list(settings.patch)}; "
        f"model {step.output.name}",
        *(f"warning   {text}" for text in touching(steps)),
    )
    state, disk = state_of(step), weights_need(unet_spec(steps).weight_bytes)
    return [
        Plan(
            step.name,
            state.kind,
            memory_bytes=memory,
            memory_of="in this process",
            disk=disk if state.kind != "done" else NOTHING,
            notes=notes,
        )
    ]


def train(steps: Steps, method: str, *, redo: bool = False, report: Report = silent) -> None:
    """Train `unet3d_pseudo`, or `unet3d_sparse` on annotated voxels alone (α = 0).

    It learns in the driver's own process.
    """
    settings = steps.project.settings.train
    step = steps.learn_unet3d(method)

    def work(step: Step) -> None:
        pseudo = method == "unet3d_pseudo"
        samples = training_samples(steps, pseudo=pseudo)
        stream = PatchStream(samples, settings, use_pseudo=pseudo)
        spec = unet_spec(steps)
        lesson = Lesson(
            step,
            "unet3d",
            spec,
            lambda: UNet3D(spec),
            stream.batch,
            voxel_loss,
            settings.steps,
            settings.learning_rate,
            settings.checkpoint_every,
            settings.seed,
            lambda: choose_precision(
                lambda: UNet3D(spec), (1, spec.channels, *settings.patch), settings.precision, True, device()
            ),
            steps.samples[samples[0].name].voxel_size_um,
        )
        learn(lesson, step, report)

    perform(step, work, redo=redo)
    steps.project.promote(method, step.output.name)
