"""Figures as data, which draw themselves; drawing alone needs matplotlib."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import TTSCompileError
from ..measuring.stats import LEVEL, Median, Ratio

_SIDES = ("#8a93a3", "#2563a8", "#0f8a6a", "#e08a2c", "#8d5fb0", "#b3261e")  # stock, compiled, batch, others
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

    @property
    def height(self) -> float:
        """Returns inches for the number of sides."""
        return 1.5 + 0.42 * len(self.sides)

    def draw(self, axes: Any) -> None:
        """Draws a bar for each side."""
        sides = list(self.sides)
        left = [0.0] * len(sides)
        longest = max(sum(parts.values()) for parts in self.sides.values())
        for colour, stage in zip(_STAGES, self.sides[sides[0]]):
            widths = [max(self.sides[side][stage], 0.0) for side in sides]
            bars = axes.barh(sides, widths, left=left, height=0.62, color=colour, label=stage)
            labels = [f"{width:.3g}" if width > 0.07 * longest else "" for width in widths]
            axes.bar_label(bars, labels, label_type="center", color="white", fontsize=8.5)
            left = [start + width for start, width in zip(left, widths)]
        axes.invert_yaxis()
        axes.grid(axis="x")
        axes.set_xlabel("seconds")
        axes.figure.legend(ncols=len(_STAGES), loc="outside lower center", frameon=False)


@dataclass(frozen=True)
class Ratios:
    """Ratios with their intervals, by quantity."""

    title: str
    ratios: Mapping[str, Ratio]

    @property
    def height(self) -> float:
        """Returns inches for the number of ratios."""
        return 1.2 + 0.36 * len(self.ratios)

    def draw(self, axes: Any) -> None:
        """Draws a point and its interval for each ratio, and a line where both sides are equal."""
        for row, ratio in enumerate(self.ratios.values()):
            colour = _VERDICTS[ratio.verdict]
            axes.errorbar(ratio.value, row, xerr=_errors([ratio]), fmt="o", color=colour, elinewidth=2.5)
            at = {"xy": (ratio.value, row), "xytext": (0, 7), "textcoords": "offset points", "ha": "center"}
            axes.annotate(f"{ratio.value:.2f}x", **at, fontsize=8.5, color=colour)
        axes.axvline(1, color="#374151", linewidth=1, linestyle="--")
        axes.set_yticks(range(len(self.ratios)), self.ratios)
        axes.set_ylim(len(self.ratios) - 0.5, -0.7)
        if max(ratio.interval[1] if ratio.interval else ratio.value for ratio in self.ratios.values()) > 8:
            axes.set_xscale("log")
        axes.set_xlabel(f"times stock's speed, {LEVEL}% interval; the dashed line: no difference")
        axes.grid(axis="x")


@dataclass(frozen=True)
class Lines:
    """Medians with their intervals over a quantity, by side; ``levels`` do not depend on it."""

    height = 3.4

    title: str
    x: str
    y: str
    lines: Mapping[str, Sequence[tuple[float, Median]]]
    levels: Mapping[str, float] = field(default_factory=dict)

    def draw(self, axes: Any) -> None:
        """Draws a line for each side and level."""
        colours = iter(_SIDES)
        for name, points in self.lines.items():
            x, medians = zip(*sorted(points, key=lambda point: point[0]))
            values = [median.value for median in medians]
            axes.errorbar(x, values, _errors(medians), fmt="o-", capsize=3, label=name, color=next(colours))
        for name, level in self.levels.items():
            axes.axhline(level, linestyle="--", label=name, color=next(colours))
        axes.set_xlabel(self.x)
        axes.set_ylabel(self.y)
        axes.set_ylim(0, None)
        axes.grid()
        axes.legend(frameon=False)


def _errors(figures: Sequence[Median | Ratio]) -> list[list[float]]:
    """Returns the distances to the lower and to the upper ends of the intervals; 0 where there is no interval."""
    ends = [(figure.value, *(figure.interval or (figure.value, figure.value))) for figure in figures]
    return [[value - low for value, low, _ in ends], [high - value for value, _, high in ends]]


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
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    target = io.StringIO()
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7.2, plot.height), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        plot.draw(axes)
        axes.set_title(plot.title)
        figure.savefig(target, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = target.getvalue()
    return svg[svg.index("<svg") :]
