"""Figures as data, and their drawing, which alone needs matplotlib."""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import TTSCompileError
from ..measuring.stats import LEVEL, Median, Ratio

_SIDES = {"stock": "#8a93a3", "compiled": "#2563a8", "batch": "#0f8a6a"}
_STAGES = ("#2563a8", "#e08a2c", "#4f9d69", "#8d5fb0", "#b8bec8")
_VERDICTS = {"gain": "#16794c", "loss": "#b3261e", "no difference": "#6b7280", "unknown": "#9a6b00"}
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "tts_compile",  # the same file for the same figures
    "svg.fonttype": "path",  # independent of the fonts of the reader's machine
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9aa1ad",
    "axes.axisbelow": True,
    "grid.color": "#e3e6eb",
}


@dataclass(frozen=True)
class Stages:
    """Seconds by side and stage, as stacked bars."""

    title: str
    sides: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Ratios:
    """Ratios with their intervals, by quantity."""

    title: str
    ratios: Mapping[str, Ratio]


@dataclass(frozen=True)
class Lines:
    """Medians with their intervals over a quantity, by side; ``levels`` do not depend on it."""

    title: str
    x: str
    y: str
    lines: Mapping[str, Sequence[tuple[float, Median]]]
    levels: Mapping[str, float] = field(default_factory=dict)


Plot = Stages | Ratios | Lines


def require() -> None:
    """Raises an error where plots cannot be drawn, before any work is done.

    Raises:
        TTSCompileError: when matplotlib is missing.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise TTSCompileError("a page with plots needs matplotlib: pip install 'tts-compile[plots]'")


def draw(plot: Plot) -> str:
    """Returns an ``<svg>`` element that loads nothing from elsewhere; equal for equal figures."""
    with _axes(height=_height(plot)) as (figure, axes):
        if isinstance(plot, Stages):
            _draw_stages(axes, plot)
        elif isinstance(plot, Ratios):
            _draw_ratios(axes, plot)
        else:
            _draw_lines(axes, plot)
        axes.set_title(plot.title)
        target = io.StringIO()
        figure.savefig(target, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = target.getvalue()
    return svg[svg.index("<svg") :]


@contextlib.contextmanager
def _axes(height: float) -> Iterator[tuple[Any, Any]]:
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7.2, height), layout="constrained")
        FigureCanvasSVG(figure)
        yield figure, figure.add_subplot()


def _height(plot: Plot) -> float:
    if isinstance(plot, Stages):
        return 1.5 + 0.42 * len(plot.sides)
    return 1.2 + 0.36 * len(plot.ratios) if isinstance(plot, Ratios) else 3.4


def _draw_stages(axes: Any, plot: Stages) -> None:
    sides = list(plot.sides)
    left = [0.0] * len(sides)
    totals = [sum(parts.values()) for parts in plot.sides.values()]
    for colour, stage in zip(_STAGES, plot.sides[sides[0]]):
        widths = [max(plot.sides[side][stage], 0.0) for side in sides]
        bars = axes.barh(sides, widths, left=left, height=0.62, color=colour, label=stage)
        labels = [f"{width:.3g}" if width > 0.07 * max(totals) else "" for width in widths]
        axes.bar_label(bars, labels, label_type="center", color="white", fontsize=8.5)
        left = [start + width for start, width in zip(left, widths)]
    axes.invert_yaxis()
    axes.grid(axis="x")
    axes.set_xlabel("seconds")
    axes.figure.legend(*axes.get_legend_handles_labels(), ncols=len(_STAGES), loc="outside lower center", frameon=False)


def _draw_ratios(axes: Any, plot: Ratios) -> None:
    for row, ratio in enumerate(plot.ratios.values()):
        colour = _VERDICTS[ratio.verdict]
        if ratio.interval is not None:
            axes.plot(ratio.interval, [row, row], color=colour, linewidth=2.5, solid_capstyle="round")
        axes.plot(ratio.value, row, "o", color=colour, markersize=6)
        axes.annotate(f"{ratio.value:.2f}x", (ratio.value, row), (0, 7), textcoords="offset points", ha="center",
                      fontsize=8.5, color=colour)  # fmt: skip
    axes.axvline(1, color="#374151", linewidth=1, linestyle="--")
    axes.set_yticks(range(len(plot.ratios)), plot.ratios)
    axes.set_ylim(len(plot.ratios) - 0.5, -0.7)
    ends = [end for ratio in plot.ratios.values() for end in (ratio.interval or (ratio.value,))]
    if max(ends) > 8:
        axes.set_xscale("log")
    axes.set_xlabel(f"times stock's speed, {LEVEL}% interval; the dashed line: no difference")
    axes.grid(axis="x")


def _draw_lines(axes: Any, plot: Lines) -> None:
    colours = iter(["#e08a2c", "#8d5fb0", "#b3261e"])
    for name, points in plot.lines.items():
        x, medians = zip(*sorted(points, key=lambda point: point[0]))
        values = [median.value for median in medians]
        spans = [median.interval or (median.value, median.value) for median in medians]
        errors = [[v - s[0] for v, s in zip(values, spans)], [s[1] - v for v, s in zip(values, spans)]]
        axes.errorbar(x, values, errors, fmt="o-", capsize=3, label=name, color=_SIDES.get(name) or next(colours))
    for name, level in plot.levels.items():
        axes.axhline(level, linestyle="--", label=name, color=_SIDES.get(name) or next(colours))
    axes.set_xlabel(plot.x)
    axes.set_ylabel(plot.y)
    axes.set_ylim(0, None)
    axes.grid()
    axes.legend(frameon=False)
