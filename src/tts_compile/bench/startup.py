"""From a fresh interpreter to the first answer: imports, loading, compiling, the first call, and peak memory."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, ClassVar

from ..loading import DTYPES
from ..measuring import proof
from ..measuring.interleaved import alternate
from ..measuring.progress import Progress, Step
from ..measuring.stats import LEVEL, Median, Ratio, difference_of_medians, median_of, ratio_of_medians, yes
from . import processes
from .models import compile_cache
from .plots import Plot, Stages
from .processes import Wanted
from .result import SIDES, Figures, Repeated, Result, Row, option

STAGES = ("imports", "load", "compile", "call")
TITLES = {
    "imports": "imports, s",
    "load": "loading the checkpoint, s",
    "compile": "compile_model, s",
    "ready": "ready to be called, s",
    "call": "first call, s",
    "steady": "steady call, s",
    "extra": "first call beyond a steady one, s",
    "answered": "until the first call is answered, s",
    "load_memory": "peak memory until it is loaded, GiB",
    "call_memory": "peak memory of the first call, GiB",
    "memory": "peak memory, GiB",
}


@dataclass(frozen=True, kw_only=True)
class ProcessSettings(Repeated):
    """Settings of both benchmarks."""

    tokens: int = option(60, "a synthetic model stops after about this many for 90 characters", least=8)
    text: str = option("Yes.", "text of every call")


@dataclass(frozen=True, kw_only=True)
class LoadSettings(ProcessSettings):
    """Settings of ``load``: stock and compiled, the compiled side with the cache that its first process filled."""

    call: bool = option(True, "leave the first call out")
    dtype: str = option("model", "of T3's weights on the compiled side", choices=("model", *DTYPES))


@dataclass(frozen=True, kw_only=True)
class StartupSettings(ProcessSettings):
    """Settings of ``startup``: stock, compiled with an empty cache (cold), and compiled with a full one (warm)."""

    calls: int = option(3, "calls in a process, after the first", least=1)


@dataclass(frozen=True, kw_only=True)
class ProcessResult(Result):
    """The figures of fresh processes; a subclass for each way to compare them.

    Attributes:
        missing: what :func:`tts_compile.measuring.proof.shortfalls` finds in each compiled process, the first included.
    """

    heading = "a fresh process"
    titles: ClassVar[Mapping[str, str]] = TITLES
    without_gain = ("extra",)
    units: ClassVar[Mapping[str, float]] = dict.fromkeys(("load_memory", "call_memory", "memory"), 2**30)

    missing: list[str]

    @property
    def shortfalls(self) -> list[str]:
        """Returns what did not run as asked in any compiled process."""
        return self.missing

    def notes(self) -> list[str]:
        """Returns the machine and the verdict."""
        return [*self.few, f"{self.about}; {self.promise}: {yes(self.passed)}"]

    def plots(self) -> list[Plot]:
        """Returns stages and ratios."""
        parts = {
            name: {stage: median(side[stage]) if stage in side else 0.0 for stage in STAGES}
            for name, side in self.sides.items()
        }
        return [Stages("A fresh process", parts), *super().plots()]


@dataclass(frozen=True, kw_only=True)
class LoadResult(ProcessResult):
    """From a fresh interpreter to the first answer, stock against compiled.

    A side's ``cold`` has the seconds, by stage, of its first process, which is not among the others.
    """

    subject = "load"
    title = "Loading, in fresh processes"
    promise = "no failures in any compiled process; the outputs of the sides are not compared here"
    method = f"tts_compile against stock, median and {LEVEL}% bootstrap interval of fresh processes that alternate"
    kept = True  # nothing is compared

    def rows(self) -> list[Row]:
        """Returns the rows of all quantities, and of the processes that came first."""
        found = super().rows()
        if self.settings.call:
            title = "first call of the side's first process, stock's before compiled, s"
            found.append((title, *(f"{side['cold']['call']:.3g}" for side in self.sides.values()), ""))
        return found

    def notes(self) -> list[str]:
        """Returns the dtype of T3's weights, where it is not the model's, the machine and the verdict."""
        dtype = self.settings.dtype
        return [*([] if dtype == "model" else [f"T3's weights in {dtype}"]), *super().notes()]


@dataclass(frozen=True, kw_only=True)
class StartupResult(ProcessResult):
    """The first utterance of a fresh process: stock's, with an empty compile cache, and with a full one."""

    subject = "startup"
    title = "The first utterance of a fresh process"
    promise = "no failures, and every graph that torch keeps was found in a full cache"
    method = (
        "stock, tts_compile with an empty compile cache (cold) and with a full one (warm): "
        f"median and {LEVEL}% bootstrap interval of fresh processes that alternate"
    )

    @property
    def missed(self) -> int:
        """Returns the graphs that a warm process did not find although torch keeps them."""
        return sum(graphs["miss"] for graphs in self.sides["warm"]["graphs"])

    @property
    def kept(self) -> bool:
        """Returns whether the warm processes found what was compiled."""
        return not self.missed and all(graphs["hit"] for graphs in self.sides["warm"]["graphs"])

    @property
    def share(self) -> Ratio:
        """Returns the first call's seconds beyond a steady one, warm against cold."""
        return ratio_of_medians(self.sides["warm"]["extra"], self.sides["cold"]["extra"], seed=self.settings.seed)

    @property
    def beyond_stock(self) -> Median:
        """Returns the seconds by which a warm process answers later than stock; negative where it is earlier."""
        stock, _, warm = self.sides.values()
        return difference_of_medians(warm["answered"], stock["answered"], self.settings.seed)

    def follows(self) -> dict[str, Any]:
        """Returns plain values that follow from the raw ones."""
        return super().follows() | {
            "share": self.share.to_dict(),
            "beyond_stock": asdict(self.beyond_stock),
            "missed": self.missed,
            "extra": {name: asdict(median_of(side["extra"])) for name, side in self.sides.items()},
        }

    def rows(self) -> list[Row]:
        """Returns the rows of all quantities, and the numbers of graphs."""
        found = super().rows()
        for name, title in (("hit", "found in the cache"), ("miss", "not found"), ("bypass", "not kept by torch")):
            counts = [sorted({graphs[name] for graphs in side["graphs"]}) for side in self.sides.values()]
            found.append((f"graphs {title}", *(" or ".join(map(str, each)) for each in counts), ""))
        return found

    def notes(self) -> list[str]:
        """Returns what a full cache saves, the machine and the verdict."""
        return [
            f"The first call's seconds beyond a steady one are {Median(self.share.value, self.share.interval)} of it "
            "with a full cache. "
            f"The first answer comes {self.beyond_stock} s after stock's (negative: before it).",
            *super().notes(),
        ]


def run_load(source: str, settings: LoadSettings, step: Step | None = None) -> LoadResult:
    """Measures ``load``; ``source`` is that of :func:`tts_compile.bench.models.load`."""
    s = settings
    with Progress(2 * (1 + s.repeats)) as progress, compile_cache() as cache_dir:
        wanted = Wanted(s.device, cache_dir, int(s.call), s.text, s.seed, s.dtype)
        ways = {side: functools.partial(processes.measure, source, side, wanted) for side in SIDES}
        # Stock's first process reads libraries and weights into memory for both; the compiled side's compiles.
        done = alternate(ways, 1 + s.repeats, step or progress)
    found = {side: [call.result for call in calls] for side, calls in done.items()}
    return LoadResult(
        settings=s,
        sides={side: _figures(later) | {"cold": _seconds(first)} for side, (first, *later) in found.items()},
        missing=_missing(found["compiled"], proof.SPEAKING if s.call else ()),
        report=found["compiled"][-1]["report"],
    )


def run_startup(source: str, settings: StartupSettings) -> StartupResult:
    """Measures ``startup``; ``source`` is that of :func:`tts_compile.bench.models.load`."""
    s = settings

    def process(side: str, cache_dir: str) -> dict[str, Any]:
        return processes.measure(source, side, Wanted(s.device, cache_dir, 1 + s.calls, s.text, s.seed))

    def cold() -> dict[str, Any]:
        with compile_cache() as empty:
            return process("compiled", empty)

    with Progress(1 + 3 * s.repeats) as progress, compile_cache() as full:
        ways: dict[str, Callable[[], dict[str, Any]]] = {
            "stock": lambda: process("stock", full),
            "cold": cold,
            "warm": lambda: process("compiled", full),
        }
        progress("filling the cache")  # and the system's, with libraries and weights, for all sides
        first = ways["warm"]()
        done = alternate(ways, s.repeats, progress)
    found = {side: [call.result for call in calls] for side, calls in done.items()}
    return StartupResult(
        settings=s,
        sides={side: _figures(each) for side, each in found.items()},
        missing=_missing([first, *found["cold"], *found["warm"]], proof.SPEAKING),
        report=found["warm"][-1]["report"],
    )


def _missing(found: Sequence[dict[str, Any]], called: Collection[str]) -> list[str]:
    """Returns the shortfalls of all compiled processes, each once."""
    lines = [line for process in found for line in proof.shortfalls(process["report"], called)]
    return list(dict.fromkeys(lines))


def _figures(found: Sequence[dict[str, Any]]) -> Figures:
    """Returns the figures of one side's processes."""
    rows = []
    for process in found:
        peaks = process["peaks"]
        memory = {"load_memory": peaks["loading"], "memory": peaks["process"], "call_memory": peaks["call"]}
        rows.append(_seconds(process) | memory | {"graphs": process["graphs"]})
    return {name: [row[name] for row in rows] for name, value in rows[0].items() if value is not None}


def _seconds(process: dict[str, Any]) -> dict[str, float]:
    """Returns the seconds of one process."""
    seconds = {stage: process[stage] for stage in STAGES if stage in process}
    seconds["ready"] = sum(seconds.values())
    first, *later = process["calls"] or [None]
    if first is not None:
        seconds |= {"call": first, "answered": seconds["ready"] + first}
    if later:
        seconds |= {"steady": median(later), "extra": first - median(later)}
    return seconds
