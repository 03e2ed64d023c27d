"""The first utterance of a fresh process: stock's, with nothing compiled yet, and with what an earlier one compiled."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from ..measuring import interleaved as alternation
from ..measuring import machine, stats
from ..measuring.stats import Median, Ratio, difference_of_medians, median_of, ratio_of_medians, spread
from . import fresh
from .child import Child
from .loading import TEXT, stages
from .models import Progress
from .plots import Plot, Stages
from .section import Cell, Result, Section

SIDES = ("stock", "cold", "warm")
_TITLES = {
    "imports": "imports, s",
    "load": "loading the checkpoint, s",
    "compile": "compile_model, s",
    "first": "first call, s",
    "steady": "steady call, s",
    "extra": "first call beyond a steady one, s",
    "answered": "until the first call is answered, s",
}


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        repeats: fresh processes of each side.
        text: of every call.
        calls: in a process, after the first.
        seed: of every call.
    """

    device: str = "cpu"
    repeats: int = 5
    text: str = TEXT
    calls: int = 3
    seed: int = 0


@dataclass
class Side:
    """Raw figures, a value per fresh process.

    Attributes:
        imports, load, compile, first: seconds; ``compile`` is empty for stock.
        steady: median seconds of the calls after the first.
        graphs: how many torch has found in its cache on disk, how many not, and how many it does not keep there.
    """

    imports: list[float] = field(default_factory=list)
    load: list[float] = field(default_factory=list)
    compile: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    steady: list[float] = field(default_factory=list)
    graphs: list[dict[str, int]] = field(default_factory=list)

    @property
    def extra(self) -> list[float]:
        """Seconds of the first call beyond a steady one."""
        return [first - steady for first, steady in zip(self.first, self.steady)]

    @property
    def answered(self) -> list[float]:
        """Seconds until the first call is answered."""
        compiled = self.compile or [0.0] * len(self.load)
        return [sum(parts) for parts in zip(self.imports, self.load, compiled, self.first)]


@dataclass(frozen=True)
class StartupResult(Result):
    """Everything measured; :meth:`to_dict` is JSON-able, ``str()`` is a table.

    Attributes:
        events: the fallback events of every compiled process.
    """

    settings: Settings
    machine: dict[str, Any]
    sides: dict[str, Side]
    events: list[dict[str, Any]]

    @property
    def title(self) -> str:
        """Of the page."""
        return "The first utterance of a fresh process"

    @property
    def method(self) -> str:
        """Processes, not calls."""
        return (
            "stock, tts_compile with an empty compile cache (cold) and with a full one (warm): "
            f"median and {stats.LEVEL}% bootstrap interval of fresh processes that alternate"
        )

    @property
    def missed(self) -> int:
        """Graphs that a warm process has not found though torch keeps them."""
        return sum(graphs["miss"] for graphs in self.sides["warm"].graphs)

    @property
    def passed(self) -> bool:
        """Whether nothing has failed, and the warm processes have found what was compiled."""
        found = all(graphs["hit"] for graphs in self.sides["warm"].graphs)
        return not self.events and not self.missed and found

    @property
    def promise(self) -> str:
        """What was looked at."""
        return "no failures, and every graph that torch keeps was found in a full cache"

    @property
    def share(self) -> Ratio:
        """Of what the first call takes beyond a steady one, warm against cold."""
        return ratio_of_medians(self.sides["warm"].extra, self.sides["cold"].extra, seed=self.settings.seed)

    @property
    def beyond_stock(self) -> Median:
        """Seconds by which the first answer of a warm process comes later than stock's; negative: earlier."""
        return difference_of_medians(self.sides["warm"].answered, self.sides["stock"].answered, self.settings.seed)

    def to_dict(self) -> dict[str, Any]:
        """Raw values and what follows from them."""
        follows = {"share": self.share.to_dict(), "beyond_stock": asdict(self.beyond_stock), "missed": self.missed}
        extra = {name: asdict(median_of(side.extra)) for name, side in self.sides.items()}
        return {"bench": "startup", "passed": self.passed, **follows, "extra": extra, **asdict(self)}

    def sections(self) -> list[Section]:
        """One table."""
        rows: list[tuple[Cell, ...]] = [("a fresh process, median (95% interval)", *SIDES)]
        for name, title in _TITLES.items():
            values = [getattr(self.sides[side], name) for side in SIDES]
            rows.append((title, *(spread(found) if found else "" for found in values)))
        for name, title in (("hit", "found in the cache"), ("miss", "not found"), ("bypass", "not kept by torch")):
            counts = [sorted({graphs[name] for graphs in self.sides[side].graphs}) for side in SIDES]
            rows.append((f"graphs {title}", *(" or ".join(map(str, found)) for found in counts)))
        about, versions, share = self.machine, self.machine["versions"], self.share
        between = "" if share.interval is None else f" ({share.interval[0]:.3f} to {share.interval[1]:.3f})"
        notes = [
            f"What the first call takes beyond a steady one is {share.value:.3f}{between} of it with a full cache. "
            f"The first answer comes {self.beyond_stock} s after stock's (negative: before it).",
            *stats.few(self.settings.repeats),
            f"{self.settings.device}; {about['cpu']}, {about['torch_threads']} threads; torch {versions['torch']}, "
            f"chatterbox-tts {versions['chatterbox-tts']}; {self.promise}: {stats.yes(self.passed)}",
        ]
        return [Section(rows, notes)]

    def plots(self) -> list[Plot]:
        """Stages."""
        parts = {
            name: {
                stage: median_of(values).value if (values := getattr(side, stage)) else 0.0
                for stage in ("imports", "load", "compile", "first")
            }
            for name, side in self.sides.items()
        }
        return [Stages("Until the first call is answered", parts)]


def run(source: str, settings: Settings) -> StartupResult:
    """Measure; ``source`` as :func:`tts_compile.bench.models.load` takes it."""
    with Progress(1 + len(SIDES) * settings.repeats) as progress, _cache() as full:

        def process(side: str, cache_dir: str) -> Child:
            return fresh.measure(
                source,
                side,
                device=settings.device,
                tokens=None,
                text=settings.text,
                seed=settings.seed,
                cache_dir=cache_dir,
                calls=1 + settings.calls,
            )

        def cold() -> Child:
            with _cache() as empty:
                return process("compiled", empty)

        ways: dict[str, Callable[[], Child]] = {
            "stock": lambda: process("stock", full),
            "cold": cold,
            "warm": lambda: process("compiled", full),
        }
        with progress.step("filling the cache"):  # and the system's, with libraries and weights, for all sides
            first = ways["warm"]()
        done = alternation.alternate(ways, settings.repeats, progress)
    children = {side: [call.result for call in calls] for side, calls in done.items()}
    rows = [
        row
        for child in (first, *children["cold"], *children["warm"])
        for row in child.found["report"]["components"].values()
    ]
    return StartupResult(
        settings,
        machine.describe(),
        {name: _side(name, children[name]) for name in SIDES},
        [event for row in rows for event in row["fallbacks"]],
    )


def _side(name: str, children: list[Child]) -> Side:
    side = Side()
    for child in children:
        for stage, seconds in stages(name, child).items():
            getattr(side, stage).append(seconds)
        first, *later = child.found["calls"]
        side.first.append(first)
        side.steady.append(median(later))
        side.graphs.append(child.found["graphs"])
    return side


@contextlib.contextmanager
def _cache() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="tts-compile-cache-", ignore_cleanup_errors=True) as folder:
        yield folder
