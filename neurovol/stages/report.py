"""Stage report: gathers pictures, figures and times from the store into one HTML file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import islice
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

import neurovol
from neurovol.blockwise.ledger import Header, Ledger, Record, read_ledger
from neurovol.geometry import Box, Zyx, zyx
from neurovol.levels import coarsening
from neurovol.networks.checkpoint import load_checkpoint
from neurovol.progress import Report, silent
from neurovol.project import Step, state_of
from neurovol.report.data import (
    Curve,
    ModelCard,
    Overview,
    PlaneView,
    QuarantinedBlock,
    ReportData,
    SampleRow,
    StageRow,
)
from neurovol.report.html import write_report
from neurovol.report.panels import Fit
from neurovol.report.preview import coloured, projected_display
from neurovol.stages.convert import filled_text
from neurovol.stages.disk import REPORT
from neurovol.stages.evaluate import NEURON, scored
from neurovol.stages.learn import curve, touching
from neurovol.stages.overview import projection
from neurovol.stages.plan import Plan
from neurovol.stages.predict import normalisation_of
from neurovol.stages.steps import Steps
from neurovol.stages.tissue import tissue_path
from neurovol.volume.omemeta import colours
from neurovol.volume.omezarr import VolumeInfo, VolumeReader, open_volume

MOST_VIEWS = 4  # test boxes shown
VIEW: Zyx = (96, 384, 384)  # of a test box, at most this much is looked at and shown
OVERVIEW_PIXELS = 700  # the coarsest level that is at least this wide, or level 0


def plan_report(steps: Steps) -> list[Plan]:
    step = steps.report()
    state = state_of(step)
    return [Plan(step.name, state.kind, disk=REPORT.left(state), notes=(f"file      {step.output}",))]


def report_project(steps: Steps, every: Sequence[Step], *, redo: bool = False, report: Report = silent) -> None:
    """Write report.html from whatever of the project's steps is done; an older one is replaced.

    It reads bounded pieces in the driver's own process; `redo` and `report` are not used.
    """
    step = steps.report()
    step.ledger.unlink(missing_ok=True)
    with Ledger(step.ledger, Header(step.name, step.inputs, 1)) as ledger:
        write_report(step.output, report_data(steps, every))
        ledger.finish()


def report_data(steps: Steps, every: Sequence[Step]) -> ReportData:
    """Everything the report shows, as far as it exists."""
    project = steps.project
    evaluated = steps.with_role("test") and state_of(steps.evaluate()).kind == "done"
    done = [name for name in steps.samples if state_of(steps.convert(name)).kind == "done"]
    return ReportData(
        project=project.settings.name,
        created=datetime.now().astimezone().isoformat(timespec="seconds"),
        version=neurovol.__version__,
        reference_note=project.settings.evaluate.reference,
        metrics=json.loads(project.metrics.read_text(encoding="utf-8")) if evaluated else {},
        samples=tuple(_sample_row(steps, name) for name in steps.samples),
        views=tuple(islice(_views(steps), 2 * MOST_VIEWS)) if evaluated else (),
        overviews=tuple(_overview(steps, name) for name in done),
        curves=tuple(_curves(steps)),
        stages=tuple(_stage_rows(every)),
        models=tuple(_model_cards(steps)),
        settings_toml=project.file.read_text(encoding="utf-8"),
        warnings=(*filter(None, (filled_text(steps.convert(name)) for name in done)), *touching(steps)),
    )


def _sample_row(steps: Steps, name: str) -> SampleRow:
    view = steps.samples[name]
    sample = steps.project.settings.sample(name)
    records = [read_ledger(steps.annotate(name, role).ledger) for role in view.annotations]
    drawn = sum(r.finished["background"] + r.finished["neuron"] for r in records if r and r.finished)
    source = ", ".join(map(str, sample.source or ("phantom",)))
    return SampleRow(name, view.shape, view.voxel_size_um, source, drawn / prod(view.shape))


def _views(steps: Steps) -> Iterator[PlaneView]:
    for name in steps.with_role("test"):
        for box in steps.samples[name].boxes("test"):
            yield from _box_views(steps, name, box)


def _box_views(steps: Steps, name: str, box: Box) -> Iterator[PlaneView]:
    """The xy and the xz plane of a test box that hold most annotated neurons."""
    found = scored(steps, name)
    centre = zyx((a + b) // 2 for a, b in box.pairs)
    shown = Box.centred(centre, zyx(map(min, box.shape, VIEW))).moved_into(box)
    labels = found.annotation.read(shown)
    raw = VolumeReader(str(steps.project.image(name))).read(shown)[0]
    predictions = {method: reader.read(shown) for method, reader in found.predictions.items()}
    size = steps.samples[name].voxel_size_um
    for plane, axis in (("xy", 0), ("xz", 1)):
        at = _fullest(labels, axis)
        pick = (slice(None),) * axis + (at,)
        yield PlaneView(
            sample=name,
            plane="xy" if plane == "xy" else "xz",
            position=f"{'z' if axis == 0 else 'y'} = {at + shown.start[axis]}",
            raw=raw[pick],
            window=_window(steps, name),
            annotation=labels[pick],
            predictions={method: p[pick] for method, p in predictions.items()},
            pixel_size_um=(size[1] if axis == 0 else size[0], size[2]),
            box=", ".join(f"{letter} {a}–{b}" for letter, (a, b) in zip("zyx", box.pairs, strict=True)),
        )


def _fullest(labels: NDArray[np.uint8], axis: int) -> int:
    """The plane with most annotated voxels of neurons; of none, the one with most annotated voxels at all."""
    others = tuple(a for a in range(3) if a != axis)
    neurons = (labels == NEURON).sum(axis=others)
    return int(np.argmax(neurons if neurons.any() else (labels > 0).sum(axis=others)))


def _window(steps: Steps, name: str) -> tuple[float, float]:
    normalisation = normalisation_of(steps.project.image(name))
    return normalisation.low[0], normalisation.high[0]


def _overview(steps: Steps, name: str) -> Overview:
    """The maximum along z of a coarse level as its preview shows it, with tissue and the U-Net's own where they are."""
    info = open_volume(steps.project.image(name))
    level = max(n for n in range(info.levels) if n == 0 or info.level_shape(n)[2] >= OVERVIEW_PIXELS)
    coarser = coarsening(info.factors[:level])
    tissue, share = _tissue(info, level)
    covered = name in steps.to_cover and steps.predicts and state_of(steps.segment(name)).kind == "done"
    p = projection(open_volume(steps.segment(name).output), level)[0] if covered else None
    return Overview(
        name,
        _previewed(info, level),
        p,
        (0, 255),
        (info.voxel_size_um[1] * coarser[1], info.voxel_size_um[2] * coarser[2]),
        f"maximum along z over {info.shape[0] * info.voxel_size_um[0]:.0f} µm, level {level}",
        tissue,
        share,
    )


def _previewed(info: VolumeInfo, level: int) -> NDArray[np.uint8]:
    """The maximum along z of a level, (y, x, RGB)."""
    planes, normalisation = projection(info, level), normalisation_of(info.path)
    display = projected_display(planes, list(zip(normalisation.low, normalisation.high, strict=True)))
    return coloured(planes, display, colours(len(planes)), Fit(planes.shape[2], planes.shape[1], 1.0))


def _tissue(info: VolumeInfo, level: int) -> tuple[NDArray[np.uint8] | None, float | None]:
    """Where any depth of a level is tissue, (y, x), and the share of tissue; None where there is no mask."""
    if not tissue_path(info.path).exists():
        return None, None
    mask = open_volume(tissue_path(info.path))
    (plane,) = projection(mask, 0)
    shown = zip(info.level_shape(level), coarsening(info.factors[:level]), mask.attributes["coarser"], strict=True)
    _, rows, cols = ((np.arange(n) * here + here // 2) // there for n, here, there in shown)
    at = np.ix_(np.minimum(rows, plane.shape[0] - 1), np.minimum(cols, plane.shape[1] - 1))
    return plane[at], mask.attributes["share"]


def _models(steps: Steps) -> Iterator[tuple[str, Step]]:
    if steps.trains and steps.to_learn_from:
        yield "cnn2d", steps.learn_cnn2d()
        yield from ((m, steps.learn_unet3d(m)) for m in sorted(steps.unets))


def _curves(steps: Steps) -> Iterator[Curve]:
    for method, step in _models(steps):
        numbers, losses = curve(step.ledger)
        if numbers:
            yield Curve(method, numbers, losses)


def _stage_rows(every: Sequence[Step]) -> Iterator[StageRow]:
    for step in every:
        record = read_ledger(step.ledger)
        if record is None:
            continue
        finished = record.finished or {}
        yield StageRow(
            step.stage,
            step.subject,
            state_of(step).seconds,
            len(record.done) if "voxels" in finished else None,
            finished.get("voxels"),
            sum(row.get("attempt", 1) - 1 for row in record.rows.values()),
            _note(record),
            tuple(_quarantined(n, record.rows[n]) for n in record.quarantined),
        )


def _note(record: Record) -> str:
    """Whether a stage is not finished, and how many blocks it skipped for which reason."""
    notes = [f"{count:,} blocks skipped: {why}" for why, count in sorted(record.rows.skipped.items())]
    return "; ".join(["not finished"] * (record.finished is None) + notes)


def _quarantined(number: int, row: dict[str, Any]) -> QuarantinedBlock:
    box = ", ".join(f"{letter} {a}–{b}" for letter, (a, b) in zip("zyx", row["box"], strict=True))
    return QuarantinedBlock(number, row["error"].strip().splitlines()[-1], box)


def _model_cards(steps: Steps) -> Iterator[ModelCard]:
    given = [] if steps.trains else [("unet3d_pseudo", steps.checkpoint("unet3d_pseudo"))]
    folders = [(m, step.output) for m, step in _models(steps) if state_of(step).kind == "done"]
    for method, folder in [*folders, *given]:
        checkpoint = load_checkpoint(folder)
        meta, notes = checkpoint.meta, checkpoint.meta.notes
        trial = ", ".join(f"{name} {ms:g} ms" for name, ms in meta.precision.trial.items())
        yield ModelCard(
            method,
            folder.name,
            ", ".join(f"{key} {value}" for key, value in checkpoint.network.items()),
            sum(tensor.numel() for tensor in checkpoint.state.values()),
            notes.get("steps"),
            notes.get("seconds"),
            meta.precision.name + (f" (trial of a step: {trial})" if trial else ""),
            meta.voxel_size_um,
            meta.normalisation,
        )
