"""Stage convert: a source becomes a sharded OME-Zarr with pyramid and histogram, in one pass over its voxels."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from distributed import Client

from neurovol.blockwise.ledger import Header, Ledger, read_ledger
from neurovol.blockwise.runner import Meter
from neurovol.errors import UserError
from neurovol.geometry import Block, BlockGrid
from neurovol.levels import parted_levels
from neurovol.progress import Report, silent
from neurovol.project import Step, perform, state_of
from neurovol.settings import StoreSettings
from neurovol.stages.blockcopy import Convert
from neurovol.stages.blockstates import watched
from neurovol.stages.copying import copy_levels, most_together, worker_bytes
from neurovol.stages.cover import level_blocks
from neurovol.stages.disk import NOTHING, conversion_need, scratch_need, shard_counts, volume_need
from neurovol.stages.overview import make_overview
from neurovol.stages.plan import Plan
from neurovol.stages.steps import Steps
from neurovol.stages.view import SampleView
from neurovol.volume.histogram import Histogram, Merging, from_arrays, save_levels
from neurovol.volume.notes import read_note
from neurovol.volume.omezarr import create_volume, finish_volume, open_volume, sweep_partial
from neurovol.volume.stored import sweep_leftovers

PERCENTILES = (0.1, 1, 25, 50, 75, 99, 99.8, 99.9)  # among them those of the normalisation rule


def plan_convert(steps: Steps, sample: str) -> list[Plan]:
    """What converting a sample would do."""
    view, settings = steps.samples[sample], steps.project.settings.convert
    step = steps.convert(sample)
    state = state_of(step)
    shard = view.layout["shard"]
    grid = BlockGrid(view.shape, shard, shard)
    item = view.voxel_bytes
    plan = Plan(
        step.name,
        state.kind,
        blocks=len(grid),
        blocks_done=min(state.done, len(grid)),
        read_bytes=prod(view.shape) * item,
        write_bytes=volume_need(view, item // len(view.channels), image=True).bytes,
        memory_bytes=worker_bytes(view),
        voxels=prod(view.shape) * len(view.channels),
        pace=_pace(view),
        disk=conversion_need(view).left(state),
        scratch=scratch_need(view) if state.kind != "done" else NOTHING,
        scratch_folder=scratch_folder(step, settings),
        notes=(
            f"source    {view.source.identity()['kind']}, {view.source.dtype}, {_shape(view.shape)} voxels (z, y, x) "
            f"of {_shape(view.voxel_size_um)} µm, channels {list(view.channels)}",
            f"store     {step.output}; chunks of {_shape(view.chunk)}, shards of {_shape(shard)}, "
            f"{1 + len(view.layout['factors'])} levels, of which {view.fused} are made with level 0",
            f"files     {len(grid):,} for level 0, {sum(shard_counts(view)):,} in all",
            *_scratch_notes(view, scratch_folder(step, settings)),
            *_overview_notes(settings),
        ),
    )
    return [plan]


def _pace(view: SampleView) -> str:
    """By what a conversion spends its time on."""
    if view.identity["kind"] == "phantom":
        return "phantom"
    return "copy" if view.source.grain == (1, 1, 1) else "decode"


def _scratch_notes(view: SampleView, folder: Path) -> tuple[str, ...]:
    if not view.unpacks:
        return ()
    return (
        f"scratch   {scratch_need(view).bytes / 1e9:.3g} GB at a time in {folder}: slices are compressed in pieces of "
        f"{_shape(view.source.grain)} voxels, and each is decoded once",
    )


def _overview_notes(settings: StoreSettings) -> tuple[str, ...]:
    made = [name for name in ("tissue", "preview") if getattr(settings, name)]
    named = {"tissue": "labels/tissue in the image", "preview": "preview.png, the maximum along z"}
    return (f"overview  {', '.join(named[name] for name in made)}",) if made else ()


def _shape(values: tuple[float, ...]) -> str:
    return " × ".join(f"{v:g}" for v in values)


def convert(steps: Steps, sample: str, *, client: Client, redo: bool = False, report: Report = silent) -> None:
    """Bring a sample's image to the store. UserError or Failure where that cannot be."""
    view = steps.samples[sample]
    step = steps.convert(sample)

    def copy_image(step: Step) -> None:
        settings, project = steps.project.settings, steps.project
        beside = Beside(project.histogram(sample), project.preview(sample))
        _copy_image(step, view, settings.convert, beside, client, settings.cluster.retries, report)

    perform(step, copy_image, redo=redo)


@dataclass(frozen=True)
class Beside:
    """What a conversion leaves beside the image."""

    histogram: Path
    preview: Path


def _copy_image(
    step: Step,
    view: SampleView,
    settings: StoreSettings,
    beside: Beside,
    client: Client,
    retries: int,
    report: Report,
) -> None:
    _claim(step)
    create_volume(
        step.output,
        channels=len(view.channels),
        dtype=view.source.dtype,
        fused=view.fused,
        codec=settings.codec,
        **view.layout,
    )
    sweep_partial(step.output)
    notes = step.ledger.with_suffix(".notes")
    notes.mkdir(parents=True, exist_ok=True)
    sweep_leftovers(beside.histogram)
    info = open_volume(step.output, allow_incomplete=True)
    blocks = level_blocks(info)
    factors = info.factors[: info.fused]
    parted = info.factors[info.fused : parted_levels(info.shape, info.full_shard, info.factors)]
    header = Header(step.name, step.inputs, sum(map(len, blocks)))
    with Ledger(step.ledger, header) as ledger:
        if info.complete and all(block.index in ledger.done for level in blocks for block in level):
            _close(step, ledger, notes)  # death came between the volume's mark and the ledger's
            return
        task = Convert(
            view.source, view.channels, str(step.output), factors, str(notes), parted, settings.on_bad_slice == "fill"
        )
        with watched(step, ledger.rows) as watch:
            copy_levels(
                client,
                task,
                blocks,
                Meter(ledger, report, watch),
                retries=retries,
                most=1 if task.fill else most_together(view),  # a slice is filled in the block that could not read it
                scratch=scratch_folder(step, settings) if view.unpacks else None,
            )
        histograms = level_histograms(notes, blocks, view.fused, len(view.channels))
        save_levels(histograms, beside.histogram)
        low, high = constants = histograms[0].constants()
        overview = make_overview(
            step.output,
            client,
            settings,
            constants,
            beside.preview,
            name=view.name,
            retries=retries,
            report=report,
            near=notes,
        )
        finish_volume(
            step.output,
            name=view.name,
            attributes={
                "normalisation": {"rule": "percentile-1-99.8", "low": list(low), "high": list(high)},
                "percentiles": percentiles(histograms),
                **overview,
                **_filled(notes),
            },
            omero=list(zip(low, high, strict=True)),
        )
        _close(step, ledger, notes)


def _close(step: Step, ledger: Ledger, notes: Path) -> None:
    """Record that a complete volume is done; what is no longer needed goes first, as no one comes back to it later."""
    shutil.rmtree(notes)
    info = open_volume(step.output)
    constants = {key: info.attributes["normalisation"][key] for key in ("low", "high")}
    filled = {key: info.attributes[key] for key in ("filled_slices",) if key in info.attributes}
    ledger.finish(voxels=prod(info.shape), **constants, **filled)


def _claim(step: Step) -> None:
    """A store without the ledger that made it belongs to something else, and is not written into."""
    if step.output.exists() and not step.ledger.exists():
        raise UserError(
            f"{step.output}: exists, but no ledger of this project made it, so it may belong to another source; "
            "move it away, or give the project another `name` or `store`"
        )
    step.ledger.parent.mkdir(parents=True, exist_ok=True)
    step.ledger.touch()  # from here on the store is known as this project's, whenever death comes


def level_histograms(notes: Path, blocks: Sequence[Sequence[Block]], fused: int, channels: int) -> list[Histogram]:
    """The histogram of each level from what was noted of its blocks, or of those of level 0 where made with these."""
    together = [Merging(channels) for _ in range(1 + fused)]
    for block in blocks[0]:  # one at a time
        for level, found in zip(together, from_arrays(read_note(notes, block.index)), strict=True):
            level.add(found)
    apart = [Merging(channels) for _ in blocks[1 + fused :]]
    for level, own in zip(apart, blocks[1 + fused :], strict=True):
        for block in own:
            (found,) = from_arrays(read_note(notes, block.index))
            level.add(found)
    return [level.histogram() for level in (*together, *apart)]


def percentiles(histograms: Sequence[Histogram]) -> dict[str, Any]:
    """By level and channel, of the non-zero voxels, for display ranges; none where all are zero."""
    levels = [
        [[one.percentile(q)[0] for q in PERCENTILES if len(one.values[0])] for one in histogram.channels]
        for histogram in histograms
    ]
    return {"of": list(PERCENTILES), "levels": levels}


def _filled(notes: Path) -> dict[str, Any]:
    """The slices that were filled with zeros, with the reason; nothing where there are none."""
    found: dict[int, str] = {}
    for file in sorted(notes.glob("*.bad")):
        found |= {int(z): why for z, why in json.loads(file.read_text(encoding="utf-8")).items()}
    return {"filled_slices": {str(z): found[z] for z in sorted(found)}} if found else {}


def filled_text(step: Step) -> str:
    """Which slices of a finished conversion are zeros because they could not be read; nothing where there are none."""
    record = read_ledger(step.ledger)
    filled = (record.finished or {}).get("filled_slices", {}) if record is not None else {}
    if not filled:
        return ""
    many = f"{len(filled)} slices could not be read and are" if len(filled) > 1 else "1 slice could not be read and is"
    reasons = "; ".join(list(filled.values())[:3]) + ("; …" if len(filled) > 3 else "")
    return f"{step.name}: {many} filled with zeros: z = {', '.join(filled)} ({reasons})"


def scratch_folder(step: Step, settings: StoreSettings) -> Path:
    """Where decoded slices lie for a while: beside the ledger, or in a folder of their own under the one set."""
    if settings.scratch is None:
        return step.ledger.with_suffix(".scratch")
    return settings.scratch / f"neurovol-{step.fingerprint}.scratch"
