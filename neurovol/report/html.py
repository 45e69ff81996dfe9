"""`report.html`: one file that needs nothing else, neither scripts nor anything fetched."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from numpy.typing import NDArray

from neurovol.report import colours, wording
from neurovol.report.curves import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, curve_panel
from neurovol.report.data import Overview, PlaneView, ReportData, in_order, method_title
from neurovol.report.panels import (
    AGREEMENT_LOOK,
    ANNOTATION_LOOK,
    MASK_LOOK,
    TISSUE_LOOK,
    Fit,
    Rgb,
    above,
    agreement,
    data_uri,
    encoded,
    fitted,
    overlay,
)

OVERVIEW_PX = 760
LARGE_PX, SMALL_PX = 640, 420  # widths of a test box's pictures; the larger one bears enlarging on the page
MANY = 32  # pictures; from here on the smaller ones, which keep the file small


@dataclass(frozen=True, slots=True)
class Panel:
    """A picture with its title; `uri` is "" where there is nothing to show."""

    title: str
    alt: str
    uri: str = ""
    width: int = 0
    height: int = 0


def _panel(title: str, alt: str, picture: Rgb) -> Panel:
    height, width = picture.shape[:2]
    return Panel(title, alt, data_uri(encoded(picture, "jpeg"), "jpeg"), width, height)


def _fit(plane: NDArray[Any], pixel_size_um: tuple[float, float], width: int) -> Fit:
    return fitted((plane.shape[0], plane.shape[1]), pixel_size_um, width, width * 3 // 2)


def _view_panels(view: PlaneView, methods: list[str], threshold: float, width: int) -> list[Panel]:
    """Raw slice, annotation, then one panel per method, an empty one where a method has no prediction."""
    fit = _fit(view.raw, view.pixel_size_um, width)
    place = f"{view.sample}, {view.plane} plane at {view.position}"
    panels = [_panel("Raw", f"Raw, {place}", overlay(view.raw, view.window, fit, None, {}))]
    if view.annotation is None:
        panels.append(Panel("Annotation", f"No annotation, {place}"))
    else:
        drawn = overlay(view.raw, view.window, fit, view.annotation, ANNOTATION_LOOK)
        panels.append(_panel("Annotation", f"Annotation, {place}", drawn))
    for method in methods:
        title = method_title(method)
        if method not in view.predictions:
            panels.append(Panel(title, f"No prediction by {title}, {place}"))
            continue
        classes = agreement(view.annotation, above(view.predictions[method], threshold))
        drawn = overlay(view.raw, view.window, fit, classes, AGREEMENT_LOOK)
        panels.append(_panel(title, f"{title} against the annotation, {place}", drawn))
    return panels


@dataclass(frozen=True, slots=True)
class ViewRow:
    plane: str
    position: str
    panels: list[Panel]


@dataclass(frozen=True, slots=True)
class ViewGroup:
    """The rows of one test box."""

    sample: str
    box: str
    rows: list[ViewRow]


def _view_groups(data: ReportData) -> Iterable[ViewGroup]:
    methods = in_order({method for view in data.views for method in view.predictions})
    width = LARGE_PX if len(data.views) * (2 + len(methods)) < MANY else SMALL_PX
    for (sample, box), views in groupby(data.views, key=lambda view: (view.sample, view.box)):
        rows = [ViewRow(v.plane, v.position, _view_panels(v, methods, data.threshold, width)) for v in views]
        yield ViewGroup(sample, box, rows)


@dataclass(frozen=True, slots=True)
class OverviewPair:
    sample: str
    caption: str
    tissue_share: float | None
    panels: list[Panel]


def _overview_pair(view: Overview, threshold: float) -> OverviewPair:
    fit = _fit(view.image, view.pixel_size_um, OVERVIEW_PX)
    raw = overlay(view.image, view.window, fit, view.tissue, TISSUE_LOOK)
    panels = [_panel("Raw", f"{view.sample}, raw{', tissue outlined' if view.tissue is not None else ''}", raw)]
    if view.probability is not None:
        mask = above(view.probability, threshold).astype("uint8")
        drawn = overlay(view.image, view.window, fit, mask, MASK_LOOK)
        panels.append(_panel("Segmentation", f"{view.sample}, segmentation outlined", drawn))
    return OverviewPair(view.sample, view.caption, view.tissue_share, panels)


@dataclass(frozen=True, slots=True)
class Mark:
    """A method's dot in the chart of scores."""

    method: str
    title: str
    value: float | None
    best: bool


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """One score of all methods, for the chart."""

    title: str
    marks: list[Mark]


def _score_chart(rows: list[wording.Score]) -> list[ScoreRow]:
    chart = []
    for key, title in wording.SCORES.items():
        winners = wording.best(rows, key)
        chart.append(ScoreRow(title, [Mark(r.method, r.title, r.values[key], r.method in winners) for r in rows]))
    return chart


@lru_cache(maxsize=1)
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        {f.__name__: f for f in (wording.decimals, wording.count, wording.large, wording.percent, wording.duration)}
    )
    environment.filters["micrometres"] = wording.micrometres
    return environment.get_template("report.html.j2")


def render_report(data: ReportData) -> str:
    """The whole page as text; every part that is absent is left out, or named as absent in a sentence."""
    rows = wording.scores(data)
    agreement_inks = {cell.name.lower(): ink for cell, ink in colours.AGREEMENT.items()}
    return _template().render(
        data=data,
        created=wording.when(data.created),
        verdict=wording.verdict(data),
        warnings=wording.all_warnings(data),
        annotated_share=wording.annotated_share(data),
        voxels=sum(sample.voxels for sample in data.samples),
        scores=rows,
        score_titles=wording.SCORES,
        best={key: wording.best(rows, key) for key in wording.SCORES},
        chart=_score_chart(rows),
        groups=list(_view_groups(data)),
        overviews=[_overview_pair(view, data.threshold) for view in data.overviews],
        curves=[panel for curve in data.curves if (panel := curve_panel(curve)) is not None],
        frame={"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM},
        lost=[(stage, block) for stage in data.stages for block in stage.quarantined],
        agreement=agreement_inks,
        inks=agreement_inks | colours.METHOD_COLOURS,
        mask=colours.MASK,
        tissue=colours.TISSUE,
        ignored=colours.IGNORED,
        ground=colours.GROUND,
        method_key=colours.method_key,
        method_title=method_title,
    )


def write_report(path: Path, data: ReportData) -> None:
    """Write the page whole or not at all: beside its place first, durable, then renamed."""
    content = render_report(data).encode("utf-8")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), 0o644)  # mkstemp's own mode would hide the report from colleagues
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
