"""From a fresh interpreter to the first answer, stock against compiled, in processes that alternate."""

from __future__ import annotations

import functools
import tempfile
from dataclasses import asdict, dataclass, field
from typing import Any

from ..measuring import interleaved as alternation
from ..measuring import machine, stats
from ..measuring.stats import LEVEL, Ratio, median_of, ratio_of_medians, spread
from . import fresh
from .child import Child
from .fresh import SIDES
from .models import Progress
from .plots import Plot, Ratios, Stages
from .section import Cell, Result, Section

TEXT = "Yes."
_STAGES = {"imports": ("started", "imported"), "load": ("loading", "loaded"), "compile": ("compiling", "compiled")}
TITLES = {
    "imports": "imports, s",
    "load": "loading the checkpoint, s",
    "compile": "compile_model, s",
    "ready": "ready to be called, s",
    "call": "first call, s",
    "answered": "until the first call is answered, s",
}

MEMORY = {
    "load_memory": "peak memory until it is loaded, GiB",
    "call_memory": "peak memory of the first call, GiB",
    "memory": "peak memory, GiB",
}


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        repeats: fresh processes of each side, besides a first one that is shown apart.
        text: of the first call; None: there is none.
        seed: of that call.
        dtype: of T3's weights on the compiled side, see :func:`tts_compile.load_model`.
    """

    device: str = "cpu"
    repeats: int = 5
    text: str | None = TEXT
    seed: int = 0
    dtype: str = "model"

    @property
    def steps(self) -> int:
        """Of the progress."""
        return 2 * (1 + self.repeats)


@dataclass
class Side:
    """One side's raw figures, a value per fresh process.

    Attributes:
        imports: seconds of importing torch, chatterbox and, on the compiled side, this library.
        load: seconds of loading the checkpoint.
        compile: seconds of ``compile_model``; empty for stock.
        call: seconds of the first call; empty where there is none.
        memory: peak bytes while loading and after.
        load_memory: peak bytes until it is loaded.
        call_memory: peak bytes after loading; empty where the system does not tell.
        cold: by the keys of :data:`TITLES`, seconds of the side's first process: nothing is compiled yet, and stock's,
            which is the very first, has left files in the system's cache for the other.
    """

    imports: list[float] = field(default_factory=list)
    load: list[float] = field(default_factory=list)
    compile: list[float] = field(default_factory=list)
    call: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    load_memory: list[float] = field(default_factory=list)
    call_memory: list[float] = field(default_factory=list)
    cold: dict[str, float] = field(default_factory=dict)

    @property
    def ready(self) -> list[float]:
        """Seconds until the model can be called."""
        return [sum(parts) for parts in zip(self.imports, self.load, self.compile or [0.0] * len(self.load))]

    @property
    def answered(self) -> list[float]:
        """Seconds until the first call is answered."""
        return [ready + call for ready, call in zip(self.ready, self.call)]


@dataclass(frozen=True)
class LoadingResult(Result):
    """Everything measured; :meth:`to_dict` is JSON-able, ``str()`` is a table.

    Attributes:
        report: the execution report of the last compiled process as plain values.
        events: the fallback events of every compiled process, the first one's too.
    """

    settings: Settings
    machine: dict[str, Any]
    stock: Side
    compiled: Side
    report: dict[str, Any]
    events: list[dict[str, Any]]

    @property
    def title(self) -> str:
        """Of the page."""
        return "Loading, in fresh processes"

    @property
    def passed(self) -> bool:
        """Whether no component of any compiled process has met a failure; speed is no part of it."""
        return not self.events

    @property
    def promise(self) -> str:
        """No outputs: the sides are processes that hand back times and counts alone."""
        return "no failures in any compiled process; what the sides speak is not compared here"

    @property
    def method(self) -> str:
        """Processes, not calls."""
        return f"tts_compile against stock, median and {LEVEL}% bootstrap interval of fresh processes that alternate"

    @property
    def gains(self) -> dict[str, Ratio]:
        """How many times faster the compiled side is, where stock has such a stage."""
        sides = {name: (getattr(self.stock, name), getattr(self.compiled, name)) for name in TITLES}
        return {name: ratio_of_medians(*pair, seed=self.settings.seed) for name, pair in sides.items() if all(pair)}

    def to_dict(self) -> dict[str, Any]:
        """Raw values and what follows from them."""
        return {"bench": "load", "passed": self.passed, "gains": stats.plain(self.gains), **asdict(self)}

    def sections(self) -> list[Section]:
        """One table."""
        rows: list[tuple[Cell, ...]] = [
            ("a fresh process, median (95% interval)", "stock", "compiled", "gain (95% interval)"),
            *self.seconds_rows(),
            *self.memory_rows(),
        ]
        cold = [side.cold for side in (self.stock, self.compiled)]
        if "call" in cold[0]:
            rows.append(
                (
                    "first call of the side's first process, stock's before compiled, s",
                    *(f"{side['call']:.3g}" for side in cold),
                    "",
                )
            )
        about, versions = self.machine, self.machine["versions"]
        weights = "" if self.settings.dtype == "model" else f"T3's weights in {self.settings.dtype}; "
        where = (
            f"{self.settings.device}; {weights}{about['cpu']}, {about['torch_threads']} threads; "
            f"torch {versions['torch']}, chatterbox-tts {versions['chatterbox-tts']}; "
            f"{self.promise}: {stats.yes(self.passed)}"
        )
        return [Section(rows, [*stats.few(self.settings.repeats), where])]

    def seconds_rows(self) -> list[tuple[Cell, ...]]:
        """Rows of the stages."""
        rows: list[tuple[Cell, ...]] = []
        for name, title in TITLES.items():
            pair = [getattr(side, name) for side in (self.stock, self.compiled)]
            if pair[1]:
                rows.append((title, *(spread(values) if values else "" for values in pair), self.gains.get(name, "")))
        return rows

    @property
    def peaks(self) -> list[str]:
        """The keys of :data:`MEMORY` that the system tells of both sides."""
        return [name for name in MEMORY if getattr(self.stock, name) and getattr(self.compiled, name)]

    def memory_rows(self) -> list[tuple[Cell, ...]]:
        """Rows of the :attr:`peaks`; their ratio is of the compiled side's to stock's."""
        rows: list[tuple[Cell, ...]] = []
        for name in self.peaks:
            pair = [getattr(side, name) for side in (self.stock, self.compiled)]
            cells = [spread([value / 2**30 for value in values]) for values in pair]
            share = ratio_of_medians(pair[1], pair[0], seed=self.settings.seed)
            between = "" if share.interval is None else f" ({share.interval[0]:.3f} to {share.interval[1]:.3f})"
            rows.append((MEMORY[name], *cells, f"{share.value:.3f}{between} of stock's"))
        return rows

    def plots(self) -> list[Plot]:
        """Stages and ratios."""
        parts = {
            side: {
                name: median_of(values).value if (values := getattr(getattr(self, side), name)) else 0.0
                for name in (*_STAGES, "call")
            }
            for side in SIDES
        }
        gains = {TITLES[name].removesuffix(", s"): gain for name, gain in self.gains.items()}
        return [Stages("A fresh process", parts), Ratios("How many times faster than stock", gains)]


def run(source: str, settings: Settings) -> LoadingResult:
    """Measure; ``source`` as :func:`tts_compile.bench.models.load` takes it."""
    with Progress(settings.steps) as progress:
        return measure(source, settings, progress)


def measure(source: str, settings: Settings, progress: Progress) -> LoadingResult:
    """The same as part of something larger."""
    with tempfile.TemporaryDirectory(prefix="tts-compile-cache-", ignore_cleanup_errors=True) as cache_dir:
        ways = {
            side: functools.partial(
                fresh.measure,
                source,
                side,
                device=settings.device,
                tokens=None,
                text=settings.text,
                seed=settings.seed,
                cache_dir=cache_dir,
                dtype=settings.dtype,
            )
            for side in SIDES
        }
        # Stock's first process pages in libraries and weights for both; the compiled side's compiles.
        calls = alternation.alternate(ways, 1 + settings.repeats, progress)
    children = {side: [call.result for call in done] for side, done in calls.items()}
    return LoadingResult(
        settings,
        machine.describe(),
        _side("stock", children["stock"]),
        _side("compiled", children["compiled"]),
        children["compiled"][-1].found["report"],
        [event for child in children["compiled"] for event in _events(child)],
    )


def _events(compiled: Child) -> list[dict[str, Any]]:
    return [event for row in compiled.found["report"]["components"].values() for event in row["fallbacks"]]


def _side(name: str, children: list[Child]) -> Side:
    cold, *later = children
    side = Side(cold=_seconds(name, cold))
    for child in later:
        for stage, seconds in _seconds(name, child).items():
            getattr(side, stage).append(seconds)
        peaks = child.found["peaks"]
        side.memory.append(peaks["process"])
        side.load_memory.append(peaks["loading"])
        side.call_memory.extend([peaks["call"]] if peaks["call"] else [])
    return side


def stages(side: str, child: Child) -> dict[str, float]:
    """Seconds between the marks of one process."""
    found = {name: child.marks[end] - child.marks[begin] for name, (begin, end) in _STAGES.items()}
    if side == "stock":
        del found["compile"]
    return found


def _seconds(side: str, child: Child) -> dict[str, float]:
    calls = child.found["calls"]
    return stages(side, child) | ({"call": calls[0]} if calls else {})
