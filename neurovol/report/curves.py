"""Loss curves: thinned and smoothed, then as SVG coordinates for the report or as a PNG for Prefect.

Each network minimises its own loss (other voxels, other weights), so each gets axes of its own.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator
from numpy.typing import NDArray
from PIL import Image

from neurovol.report.colours import METHOD_COLOURS, method_key
from neurovol.report.data import Curve, method_title
from neurovol.report.panels import encoded

Floats = NDArray[np.float64]
POINTS = 300  # more than a panel has pixels for
WIDTH, HEIGHT = 380, 210  # of a panel's SVG, in its own units
LEFT, RIGHT, TOP, BOTTOM = 48, 18, 10, 32


def finite(curve: Curve) -> tuple[Floats, Floats]:
    """Steps and losses that are numbers."""
    steps, losses = np.asarray(curve.steps, np.float64), np.asarray(curve.losses, np.float64)
    kept = np.isfinite(losses)
    return steps[kept], losses[kept]


def running_mean(values: Floats, width: int) -> Floats:
    """Mean over `width` neighbours, over fewer at the ends.

    >>> running_mean(np.array([0.0, 3.0, 6.0]), 3).tolist()
    [1.5, 3.0, 4.5]
    """
    ones = np.ones(min(width, len(values)))
    return np.convolve(values, ones, "same") / np.convolve(np.ones(len(values)), ones, "same")


def smoothing_width(count: int) -> int:
    """An odd number of steps, about a thirtieth of the curve."""
    return max(1, count // 30) | 1


def thinned(count: int) -> NDArray[np.intp]:
    """At most `POINTS` indices, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, POINTS)).round().astype(np.intp))


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark on an axis: where, in the SVG's units, and what it says."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class CurvePanel:
    """One network's loss as SVG coordinates."""

    method: str
    title: str
    raw: str  # polyline points of the loss itself
    smooth: str  # and of its running mean
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    last: float  # running mean at the last step
    steps: int


@dataclass(frozen=True, slots=True)
class Scale:
    """From values to positions along an axis; logarithmic where asked."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = np.log10((self.low, self.high, value)) if self.log else (self.low, self.high, value)
        return float(self.start + (at - low) / ((high - low) or 1) * (self.stop - self.start))


def _loss_scale(losses: Floats) -> Scale:
    low, high = float(losses.min()), float(losses.max())
    log = low > 0 and high / low > 5  # a loss that fell little reads better on a plain axis
    low, high = (low / 1.15, high * 1.15) if log else (min(0.0, low), high * 1.05)
    return Scale(low, high if high > low else low + 1, HEIGHT - BOTTOM, TOP, log)


def _tick_values(scale: Scale) -> list[float]:
    """Round values along a scale; only powers of ten where it spans many."""
    subs = (1,) if scale.high > scale.low * 1000 else (1, 2, 5)
    locator = LogLocator(subs=subs, numticks=12) if scale.log else MaxNLocator(4)
    return [float(v) for v in locator.tick_values(scale.low, scale.high) if scale.low <= v <= scale.high]


def _ticks(scale: Scale) -> list[Tick]:
    return [Tick(round(scale(v), 1), f"{v:g}") for v in _tick_values(scale)]


def _points(x: Scale, y: Scale, steps: Floats, losses: Floats) -> str:
    kept = thinned(len(steps))
    return " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in zip(steps[kept], losses[kept], strict=True))


def curve_panel(curve: Curve) -> CurvePanel | None:
    """A curve's panel; None where fewer than two losses are numbers."""
    steps, losses = finite(curve)
    if len(steps) < 2:
        return None
    mean = running_mean(losses, smoothing_width(len(losses)))
    x, y = Scale(0.0, float(steps[-1]), LEFT, WIDTH - RIGHT), _loss_scale(losses)
    return CurvePanel(
        method=curve.method,
        title=method_title(curve.method),
        raw=_points(x, y, steps, losses),
        smooth=_points(x, y, steps, mean),
        x_ticks=_ticks(x),
        y_ticks=_ticks(y),
        last=float(mean[-1]),
        steps=int(steps[-1]),
    )


def curve_png(curves: Sequence[Curve]) -> bytes:
    """All curves side by side, as a PNG of 352 px height; empty axes without curves."""
    figure = Figure(figsize=(4.2 * max(1, len(curves)), 3.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, curve in zip(np.ravel(figure.subplots(1, max(1, len(curves)), squeeze=False)), curves, strict=False):
        steps, losses = finite(curve)
        axes.set(xlabel="step")
        axes.set_title(method_title(curve.method), fontsize=10, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        if not len(steps):
            continue
        colour = METHOD_COLOURS[method_key(curve.method)].on_light
        axes.plot(steps, losses, color=colour, alpha=0.3, linewidth=0.8)
        axes.plot(steps, running_mean(losses, smoothing_width(len(losses))), color=colour, linewidth=1.8)
        scale = _loss_scale(losses)
        if scale.log:
            axes.set_yscale("log")
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(scale.low, scale.high)
        axes.set_yticks(_tick_values(scale), [f"{v:g}" for v in _tick_values(scale)])
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return encoded(np.array(Image.open(buffer).convert("RGB")), "png")  # with few colours, at a third of the size
