"""Stage convert: a source becomes a sharded OME-Zarr with pyramid and histogram, in one pass over its voxels."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import Any

from distributed import Client

from neurovol.blockwise.ledger import Header, Ledger, read_ledger
from neurovol.blockwise.runner import Meter, run_blocks
from neurovol.errors import UserError
from neurovol.geometry import BlockGrid, ceil_div
from neurovol.levels import files_of, level_shard
from neurovol.progress import Report, silent
from neurovol.project import Step, perform, state_of
from neurovol.settings import StoreSettings
from neurovol.stages.copying import Convert, run_unpacked, worker_bytes
from neurovol.stages.cover import level_blocks, write_coarser
from neurovol.stages.plan import Plan
from neurovol.stages.steps import Steps
from neurovol.stages.view import SampleView
from neurovol.volume.histogram import Histogram
from neurovol.volume.omezarr import create_volume, finish_volume, open_volume, sweep_partial
from neurovol.volume.unpacked import scratch_bytes


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
        write_bytes=int(prod(view.shape) * item * 8 / 7),
        memory_bytes=worker_bytes(view),
        voxels=prod(view.shape) * len(view.channels),
        pace=_pace(view),
        notes=(
            f"source    {view.source.identity()['kind']}, {view.source.dtype}, {_shape(view.shape)} voxels (z, y, x) "
            f"of {_shape(view.voxel_size_um)} µm, channels {list(view.channels)}",
            f"store     {step.output}; chunks of {_shape(view.chunk)}, shards of {_shape(shard)}, "
            f"{1 + len(view.layout['factors'])} levels, of which {view.fused} are made with level 0",
            f"files     {len(grid):,} for level 0, {sum(_files(view)):,} in all",
            *_scratch_notes(view, scratch_folder(step, settings)),
        ),
    )
    return [plan]


def _pace(view: SampleView) -> str:
    """By what a conversion spends its time on."""
    if view.identity["kind"] == "phantom":
        return "phantom"
    return "copy" if view.source.grain == (1, 1, 1) else "decode"


def _files(view: SampleView) -> list[int]:
    """How many shards each level has."""
    layout = view.layout
    counts = []
    for level in range(1 + len(layout["factors"])):
        shape = view.shape
        for step in layout["factors"][:level]:
            shape = ceil_div(shape, step)
        shard = level_shard(view.shape, view.chunk, layout["shard"], layout["factors"], level, view.fused)
        counts.append(files_of(shape, shard))
    return counts


def _scratch_notes(view: SampleView, folder: Path) -> tuple[str, ...]:
    if not view.unpacks:
        return ()
    needed = scratch_bytes(view.shape, view.layout["shard"], view.voxel_bytes)
    return (
        f"scratch   {needed / 1e9:.3g} GB at a time in {folder}: slices are compressed in pieces of "
        f"{_shape(view.source.grain)} voxels, and each is decoded once",
    )


def _shape(values: tuple[float, ...]) -> str:
    return " × ".join(f"{v:g}" for v in values)


def convert(steps: Steps, sample: str, *, client: Client, redo: bool = False, report: Report = silent) -> None:
    """Bring a sample's image to the store. UserError or Failure where that cannot be."""
    view = steps.samples[sample]
    step = steps.convert(sample)
    was = step.output.exists()

    def copy_image(step: Step) -> None:
        settings, histogram = steps.project.settings, steps.project.histogram(sample)
        _copy_image(step, view, settings.convert, histogram, client, settings.cluster.retries, report)

    perform(step, copy_image, redo=redo)
    if redo and was:  # the labels lay inside the old image
        for role in ("train", "test"):
            if not steps.project.label(sample, role).exists():
                steps.project.ledger(sample, f"annotate-{role}").unlink(missing_ok=True)


def _copy_image(
    step: Step,
    view: SampleView,
    settings: StoreSettings,
    histogram_file: Path,
    client: Client,
    retries: int,
    report: Report,
) -> None:
    _claim(step)
    create_volume(step.output, channels=len(view.channels), dtype=view.source.dtype, fused=view.fused, **view.layout)
    sweep_partial(step.output)
    notes = step.ledger.with_suffix(".notes")
    notes.mkdir(parents=True, exist_ok=True)
    blocks = level_blocks(open_volume(step.output, allow_incomplete=True))
    factors = tuple(view.layout["factors"][: view.fused])
    with Ledger(step.ledger, Header(step.name, step.inputs, sum(map(len, blocks)))) as ledger:
        meter = Meter(ledger, report)
        task = Convert(
            view.source, view.channels, str(step.output), factors, str(notes), settings.on_bad_slice == "fill"
        )
        if view.unpacks:
            run_unpacked(client, task, blocks[0], meter, retries, scratch_folder(step, settings))
        else:
            run_blocks(client, task, blocks[0], meter, retries=retries)
        write_coarser(client, step.output, blocks, meter, "mean", retries)
        histogram = merged([notes / f"{b.index}.npz" for b in blocks[0]], len(view.channels))
        histogram.save(histogram_file)
        low, high = histogram.constants()
        finish_volume(
            step.output,
            name=view.name,
            attributes={
                "normalisation": {"rule": "percentile-1-99.8", "low": list(low), "high": list(high)},
                **_filled(notes),
            },
            omero=list(zip(low, high, strict=True)),
        )
        ledger.finish(voxels=prod(view.shape), low=list(low), high=list(high), **_filled(notes))
    shutil.rmtree(notes)


def _claim(step: Step) -> None:
    """A store without the ledger that made it belongs to something else, and is not written into."""
    if step.output.exists() and not step.ledger.exists():
        raise UserError(
            f"{step.output}: exists, but no ledger of this project made it, so it may belong to another source; "
            "move it away, or give the project another `name` or `store`"
        )
    step.ledger.parent.mkdir(parents=True, exist_ok=True)
    step.ledger.touch()  # from here on the store is known as this project's, whenever death comes


def merged(files: Iterable[Path], channels: int) -> Histogram:
    """The blocks' histograms as one, read one at a time."""
    return Histogram.merged(map(Histogram.load, files), channels)


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
