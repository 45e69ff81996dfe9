import dataclasses
import math
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from neurovol.report.data import (
    METHODS,
    Curve,
    ModelCard,
    Overview,
    PlaneView,
    QuarantinedBlock,
    ReportData,
    SampleRow,
    StageRow,
)
from neurovol.report.html import render_report, write_report

VOID = {"meta", "img", "input", "br", "hr", "link"}


class Page(HTMLParser):
    """Checks that tags nest, and collects what a browser would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.tags: set[str] = set()
        self.words = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.sources += [value for name, value in attrs if name in ("src", "srcset", "data", "poster", "xlink:href")]
        self.sources += [value for name, value in attrs if name == "href" and not value.startswith("#")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += f" {data}"


def scored(dice: float | None) -> dict:
    confusion = {"tn": 1234567, "fp": 2345, "fn": 321, "tp": 4321}
    return {"dice": dice, "precision": 0.648, "recall": None, "average_precision": math.nan, "confusion": confusion}


def views() -> tuple[PlaneView, ...]:
    rng = np.random.default_rng(0)
    annotation = np.array([[0, 1, 2], [3, 2, 1]], np.uint8).repeat(5, 0).repeat(7, 1)
    p = rng.random(annotation.shape).astype(np.float32)
    predictions = {"cnn2d": p, "unet3d_pseudo": (p * 255).astype(np.uint8)}
    raw = rng.integers(0, 999, annotation.shape).astype(np.uint16)
    xy = PlaneView("a", "xy", "z = 31", raw, (0, 999), annotation, predictions, (2.0, 2.0), "z 0–30")
    return xy, dataclasses.replace(xy, plane="xz", position="y = 5", annotation=None, pixel_size_um=(5.0, 2.0))


FULL = ReportData(
    project="pilot",
    created="2025-12-03T14:05:00",
    version="0.1.0",
    reference_note="agreement with a machine-made reference, not accuracy",
    metrics={"threshold": 0.5, "methods": {m: scored(0.5 + 0.1 * i) for i, m in enumerate(METHODS)}},
    samples=(SampleRow("a", (30, 51, 67), (5.0, 2.0, 2.0), "signal.tif", 0.4384),),
    views=views(),
    overviews=(Overview("a", np.ones((9, 11)), np.ones((9, 11), np.float32), (0, 1), (2.0, 2.0), "maximum over z"),),
    curves=tuple(Curve(m, [1, 2, 3], [1.0, 0.3, 0.1]) for m in METHODS),
    stages=(
        StageRow("convert", "a", 2.0, 6, 10_000_000),
        StageRow("segment", "a", 8.0, 6, 10_000_000, 4, "", (QuarantinedBlock(17, "OSError: disk on fire"),)),
    ),
    models=(ModelCard("unet3d_pseudo", "unet3d-pseudo-1", "16, 32, 64 channels", 352145, 2000, 61.0, "bf16"),),
    settings_toml='[train]\nalpha = 0.3\nnote = "<b>"',
    warnings=("a training box touches a test box",),
)
PARTS = [f.name for f in dataclasses.fields(ReportData) if f.default is not dataclasses.MISSING] + ["metrics"]


@pytest.fixture(scope="module")
def full() -> str:
    return render_report(FULL)


def test_the_page_needs_nothing_but_itself(full):
    page = Page(full)
    assert not re.search(r"https?://|@import|url\(", full)
    assert page.sources
    assert all(source.startswith("data:image/") for source in page.sources)
    assert not page.tags & {"script", "link", "iframe", "object"}


def test_numbers_shown_are_those_of_the_metrics(full):
    words = Page(full).words.replace("\u202f", "")
    for shown in ("0.500", "0.600", "0.700", "0.648", "1234567", "2345", "321", "4321", "43.8 %", "n/a"):
        assert shown in words
    assert "nan" not in words.lower().split()
    assert re.search(r"U-Net with pseudo-labels</th>\s*<td class=\"n score best\">0\.700", full)


def test_what_the_reference_is_stands_in_the_header_and_beside_the_table(full):
    assert full.count(FULL.reference_note) == 2


def test_quarantined_blocks_are_named_with_their_reason(full):
    words = Page(full).words
    assert "17" in words
    assert "OSError: disk on fire" in words
    assert "1 block was quarantined" in words


def test_a_missing_prediction_and_a_missing_annotation_say_so(full):
    assert "No annotation, a, xz plane at y = 5" in full
    only_cnn = dataclasses.replace(FULL.views[0], predictions={"cnn2d": FULL.views[0].predictions["cnn2d"]})
    text = render_report(dataclasses.replace(FULL, views=(FULL.views[0], only_cnn)))
    assert "No prediction by U-Net with pseudo-labels, a, xy plane at z = 31" in text


def test_names_are_text_and_never_markup():
    evil = '<script>alert("x")</script>'
    stage = StageRow(evil, evil, note=evil, quarantined=(QuarantinedBlock(1, evil, evil),))
    data = ReportData(
        evil,
        "2025-12-03",
        evil,
        evil,
        {"methods": {evil: scored(0.1)}},
        (SampleRow(evil, (1, 1, 1), (1, 1, 1), evil),),
        (dataclasses.replace(FULL.views[0], sample=evil, position=evil, box=evil),),
        (dataclasses.replace(FULL.overviews[0], sample=evil, caption=evil),),
        (Curve(evil, [1, 2], [1.0, 0.5]),),
        (stage,),
        (ModelCard(evil, evil, evil, precision=evil, normalisation=evil, further=((evil, evil),)),),
        evil,
        (evil,),
    )
    text = render_report(data)
    assert "script" not in Page(text).tags
    assert "<script" not in text


@pytest.mark.parametrize("part", PARTS)
def test_the_page_renders_without_any_one_part(part):
    empty = {} if part == "metrics" else "" if isinstance(getattr(FULL, part), str) else ()
    Page(render_report(dataclasses.replace(FULL, **{part: empty})))


def test_the_page_renders_without_all_parts_and_says_that_nothing_was_scored():
    words = Page(render_report(ReportData("empty", "2025-12-03T14:05:00", "0.1.0"))).words
    assert "no test annotations were given" in words
    assert "Nothing was scored" in words


@pytest.mark.parametrize("given", [{}, {"confusion": None}, {"dice": math.nan, "confusion": {"tp": 0, "fn": 0}}])
def test_undefined_scores_read_as_not_available(given):
    text = render_report(dataclasses.replace(FULL, metrics={"methods": {"cnn2d": given}}))
    assert "n/a" in Page(text).words
    assert 'nan"' not in text


def test_writing_replaces_the_old_report_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "new" / "report.html"
    write_report(path, ReportData("old", "2025-12-03T14:05:00", "0.1.0"))
    write_report(path, ReportData("new", "2025-12-03T14:05:00", "0.1.0"))
    assert "<h1>new</h1>" in path.read_text(encoding="utf-8")
    assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_report_that_cannot_be_made_leaves_the_old_one(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(ValueError, match="yesterday"):
        write_report(path, ReportData("new", "yesterday", "0.1.0"))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_report_needs_neither_pyplot_nor_torch():
    code = "import sys, neurovol.report.html; print({'matplotlib.pyplot', 'torch', 'zarr', 'dask'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
