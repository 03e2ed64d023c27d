"""Fresh processes that load a model and speak: seconds from the start to the first answer, and peak memory."""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, NamedTuple

import torch

from .. import _compat
from ..api import compile_model
from ..config import CompileConfig
from ..errors import TTSCompileError
from ..loading import DTYPES
from ..measuring import proof
from ..measuring.interleaved import alternate
from ..measuring.progress import Progress, Step
from ..measuring.stats import LEVEL, Median, Ratio, difference_of_medians, median_of, ratio_of_medians, spread, yes
from ..timing.blocks import Stopwatch
from ..timing.peak_memory import peak_bytes, reset_peak
from .models import compile_cache, load, load_quickly, only, quiet, t3_inputs
from .plots import Plot, Ratios, Stages
from .result import INTERVAL, Cell, Repeated, Result, Row, Section, option

TEXT = "Yes."
SIDES = ("stock", "compiled")
_GIB = 2**30
_MARK = "@ "
# The first statements of a user's program; on the stock side they must not find torch imported by this library.
_IMPORTS = {
    "stock": "from chatterbox.tts import ChatterboxTTS",
    "compiled": "from tts_compile.loading import stock_class; ChatterboxTTS = stock_class('ChatterboxTTS')",
}
_PROGRAM = f"""
print("{_MARK}started", flush=True)
{{imports}}
print("{_MARK}imported", flush=True)
from {__name__} import main
main()
"""


@dataclass(frozen=True)
class Child:
    """A process that has ended.

    Attributes:
        found: the JSON object that it printed last.
        marks: seconds from its start to each line that begins with a mark.
    """

    found: dict[str, Any]
    marks: dict[str, float]


class Wanted(NamedTuple):
    """What a process does once the model is loaded.

    Attributes:
        device: the model is loaded to it.
        tokens: speech tokens of calls of T3 alone; None for ``generate``.
        text: of the calls; None for no call.
        seed: of the calls.
        cache_dir: the folder for compiled code.
        calls: their number.
        dtype: of T3's weights on the compiled side, see :func:`tts_compile.load_model`.
    """

    device: str
    tokens: int | None
    text: str | None
    seed: int
    cache_dir: str | None
    calls: int = 1
    dtype: str = "model"


def run_python(arguments: Sequence[str], what: str, environment: Mapping[str, str] | None = None) -> Child:
    """Starts Python with ``arguments`` and waits for the JSON object that it prints last.

    Args:
        arguments: of the interpreter.
        what: the process in words, for the message of an error.
        environment: variables in addition to this process's.

    Raises:
        TTSCompileError: when the process fails; the message quotes the last line of its error output.
    """
    marks: dict[str, float] = {}
    last = ""
    # Errors go to a file, since a pipe that nothing reads would stop the process once it is full.
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors, Stopwatch() as watch:
        child = subprocess.Popen(
            [sys.executable, *arguments],
            stdout=subprocess.PIPE,
            stderr=errors,
            encoding="utf-8",
            env={**os.environ, **(environment or {})},
        )
        with child:
            try:
                for line in child.stdout or ():
                    if line.startswith(_MARK):
                        marks[line.removeprefix(_MARK).strip()] = watch.seconds
                    else:
                        last = line
            except BaseException:
                child.kill()
                raise
        if child.returncode != 0:
            errors.seek(0)
            reason = (errors.read().strip().splitlines() or ["no message"])[-1]
            raise TTSCompileError(f"{what} failed: {reason}")
    return Child(json.loads(last), marks)


def measure(source: str, side: str, wanted: Wanted) -> Child:
    """Starts a process that loads the model on one side and calls it.

    The process finds ``peaks`` of memory in bytes, the seconds of ``calls``, the ``graphs`` that torch found in its
    cache on disk and those that it did not, and the ``report``. Its marks are ``started``, ``imported``, ``loading``,
    ``loaded``, ``compiling`` and ``compiled``.
    """
    program = _PROGRAM.format(imports=_IMPORTS[side])
    given = [source, side, json.dumps(wanted._asdict())]
    return run_python(["-c", program, *given], f"the {side} side in a fresh process")


def main(argv: Sequence[str] | None = None) -> int:
    """Loads the model, calls it on one side and prints the figures."""
    parser = argparse.ArgumentParser(description="Seconds and peak memory of loading a model and calling it.")
    parser.add_argument("source", help="checkpoint folder, or 'pretrained'")
    parser.add_argument("side", choices=SIDES)
    parser.add_argument("wanted", type=lambda text: Wanted(**json.loads(text)), help="JSON")
    args = parser.parse_args(argv)
    wanted: Wanted = args.wanted
    compiled = args.side == "compiled"
    terminal = sys.stdout

    def mark(name: str) -> None:
        print(f"{_MARK}{name}", file=terminal, flush=True)

    with quiet():
        mark("loading")
        if compiled:
            tts = load_quickly(args.source, wanted.device, dtype=wanted.dtype)
        else:
            tts = load(args.source, wanted.device)
        mark("loaded")
        while_loading, how = peak_bytes()
        reset = reset_peak()
        report = None
        calls: list[float] = []
        mark("compiling")
        if compiled:
            config = CompileConfig.from_env().replace(cache_dir=wanted.cache_dir)
            fast = compile_model(tts, config if wanted.tokens is None else only("t3", config))
        mark("compiled")
        for _ in range(wanted.calls if wanted.text is not None else 0):
            torch.manual_seed(wanted.seed)
            with Stopwatch() as watch:
                if wanted.tokens is None:
                    tts.generate(wanted.text)
                else:
                    tts.t3.inference(**t3_inputs(tts, str(wanted.text)), max_new_tokens=wanted.tokens)
            calls.append(watch.seconds)
        after, _ = peak_bytes()
        if compiled:
            report = fast.report().to_dict()
    # Loading in stock's way peaks far above a call, so that a copy of the weights would not show in the whole peak.
    peaks = {
        "process": max(while_loading, after),
        "loading": while_loading,
        "call": after if reset and calls else None,
        "how": how,
    }
    print(json.dumps({"peaks": peaks, "calls": calls, "graphs": _compat.graphs_in_cache(), "report": report}))
    return 0


def peaks(source: str, wanted: Wanted) -> dict[str, dict[str, Any]]:
    """Returns the peak memory in bytes of a process of each side: keys ``process``, ``call`` (or None), ``how``."""
    return {side: measure(source, side, wanted).found["peaks"] for side in SIDES}


def peak_rows(found: dict[str, dict[str, Any]] | None) -> list[Row]:
    """Returns a table's rows for the peaks of both sides, as far as they could be measured."""
    rows: list[Row] = []
    for key, what in (("process", "peak memory with loading, GiB"), ("call", "peak memory of the call, GiB")):
        if found and found["stock"][key] and found["compiled"][key]:
            of_stock, of_compiled = found["stock"][key], found["compiled"][key]
            cells = (f"{of_stock / _GIB:.2f}", f"{of_compiled / _GIB:.2f}")
            rows.append((what, *cells, f"{of_compiled / of_stock:.3f} of stock's"))
    return rows


# Stages by their marks, and titles of all figures in seconds.
_STAGES = {"imports": ("started", "imported"), "load": ("loading", "loaded"), "compile": ("compiling", "compiled")}
TITLES = {
    "imports": "imports, s",
    "load": "loading the checkpoint, s",
    "compile": "compile_model, s",
    "ready": "ready to be called, s",
    "call": "first call, s",
    "steady": "steady call, s",
    "extra": "first call beyond a steady one, s",
    "answered": "until the first call is answered, s",
}
MEMORY = {
    "load_memory": "peak memory until it is loaded, GiB",
    "call_memory": "peak memory of the first call, GiB",
    "memory": "peak memory, GiB",
}


@dataclass(frozen=True, kw_only=True)
class LoadSettings(Repeated):
    """Settings of ``load``: stock and compiled, the compiled side with the cache that its first process filled."""

    tokens: int = option(60, "a synthetic model stops after about this many for 90 characters", least=8)
    text: str = option(TEXT, "text of the first call")
    call: bool = option(True, "leave the first call out")
    dtype: str = option("model", "of T3's weights on the compiled side", choices=("model", *DTYPES))


@dataclass(frozen=True, kw_only=True)
class StartupSettings(Repeated):
    """Settings of ``startup``: stock, compiled with an empty cache (cold), and compiled with a full one (warm)."""

    tokens: int = option(60, "a synthetic model stops after about this many for 90 characters", least=8)
    text: str = option(TEXT, "text of every call")
    calls: int = option(3, "calls in a process, after the first", least=1)


@dataclass
class Side:
    """The raw figures of one side, a value per fresh process; a list is empty for what the side does not do.

    Attributes:
        imports: seconds of importing torch, chatterbox and, on the compiled side, this library.
        load: seconds of loading the checkpoint.
        compile: seconds of ``compile_model``.
        call: seconds of the first call.
        steady: median seconds of the calls after the first.
        memory: peak bytes of the process.
        load_memory: peak bytes until the model is loaded.
        call_memory: peak bytes after loading; empty where the system does not measure it.
        graphs: graphs that torch found in its cache on disk, did not find there, and does not keep there.
        cold: seconds, by stage, of the side's first process, which is not among the others.
    """

    imports: list[float] = field(default_factory=list)
    load: list[float] = field(default_factory=list)
    compile: list[float] = field(default_factory=list)
    call: list[float] = field(default_factory=list)
    steady: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    load_memory: list[float] = field(default_factory=list)
    call_memory: list[float] = field(default_factory=list)
    graphs: list[dict[str, int]] = field(default_factory=list)
    cold: dict[str, float] = field(default_factory=dict)

    @property
    def ready(self) -> list[float]:
        """Returns the seconds until the model can be called."""
        return [sum(parts) for parts in zip(self.imports, self.load, self.compile or [0.0] * len(self.load))]

    @property
    def answered(self) -> list[float]:
        """Returns the seconds until the first call is answered."""
        return [ready + call for ready, call in zip(self.ready, self.call)]

    @property
    def extra(self) -> list[float]:
        """Returns the seconds of the first call beyond a steady one."""
        return [first - steady for first, steady in zip(self.call, self.steady)]


@dataclass(frozen=True, kw_only=True)
class ProcessResult(Result):
    """The figures of fresh processes; a subclass for each way to compare them.

    Attributes:
        sides: by name.
        missing: what :func:`tts_compile.measuring.proof.shortfalls` finds in each compiled process, the first included.
    """

    sides: dict[str, Side]
    missing: list[str]

    @property
    def shortfalls(self) -> list[str]:
        """Returns what did not run as asked in any compiled process."""
        return self.missing

    def table(self, names: Collection[str]) -> list[Row]:
        """Returns a table's rows of the figures in seconds, with a column for each side."""
        rows: list[Row] = []
        for name in names:
            values = [getattr(side, name) for side in self.sides.values()]
            if values[-1]:
                rows.append((TITLES[name], *(spread(found) if found else "" for found in values)))
        return rows

    def stages(self, title: str) -> Stages:
        """Returns bars of the stages."""
        parts = {
            name: {
                stage: median_of(values).value if (values := getattr(side, stage)) else 0.0
                for stage in (*_STAGES, "call")
            }
            for name, side in self.sides.items()
        }
        return Stages(title, parts)


@dataclass(frozen=True, kw_only=True)
class LoadResult(ProcessResult):
    """From a fresh interpreter to the first answer, stock against compiled."""

    subject = "load"
    title = "Loading, in fresh processes"
    promise = "no failures in any compiled process; the outputs of the sides are not compared here"
    method = f"tts_compile against stock, median and {LEVEL}% bootstrap interval of fresh processes that alternate"
    kept = True  # nothing is compared

    @property
    def gains(self) -> dict[str, Ratio]:
        """Returns how many times faster the compiled side is, where stock has such a stage."""
        found = {}
        for name in TITLES:
            stock, compiled = (getattr(side, name) for side in self.sides.values())
            if stock and compiled:
                found[name] = ratio_of_medians(stock, compiled, seed=self.settings.seed)
        return found

    def follows(self) -> dict[str, Any]:
        """Returns the gains, and each side under its name."""
        return {**super().follows(), **{name: asdict(side) for name, side in self.sides.items()}}

    def sections(self) -> list[Section]:
        """Returns one table."""
        rows: list[Row] = [(f"a fresh process, median {INTERVAL}", *SIDES, f"gain {INTERVAL}")]
        rows += self.seconds_rows() + self.memory_rows()
        cold = [side.cold for side in self.sides.values()]
        if "call" in cold[0]:
            title = "first call of the side's first process, stock's before compiled, s"
            rows.append((title, *(f"{side['call']:.3g}" for side in cold), ""))
        weights = "" if self.settings.dtype == "model" else f"T3's weights in {self.settings.dtype}; "
        return [Section(rows, [*self.few, f"{weights}{self.about}; {self.promise}: {yes(self.passed)}"])]

    def seconds_rows(self) -> list[Row]:
        """Returns the rows of the stages."""
        names = {title: name for name, title in TITLES.items()}
        return [(*row, self.gains.get(names[str(row[0])], "")) for row in self.table(TITLES)]

    @property
    def peaks(self) -> list[str]:
        """Returns the keys of :data:`MEMORY` that the system measured for both sides."""
        return [name for name in MEMORY if all(getattr(side, name) for side in self.sides.values())]

    def memory_rows(self) -> list[Row]:
        """Returns the rows of the :attr:`peaks`; their ratio is that of the compiled side's to stock's."""
        rows: list[Row] = []
        for name in self.peaks:
            stock, compiled = (getattr(side, name) for side in self.sides.values())
            cells: list[Cell] = [spread([value / _GIB for value in values]) for values in (stock, compiled)]
            share = ratio_of_medians(compiled, stock, seed=self.settings.seed)
            rows.append((MEMORY[name], *cells, f"{_share(share)} of stock's"))
        return rows

    def plots(self) -> list[Plot]:
        """Returns stages and ratios."""
        gains = {TITLES[name].removesuffix(", s"): gain for name, gain in self.gains.items()}
        return [self.stages("A fresh process"), Ratios("How many times faster than stock", gains)]


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
        return sum(graphs["miss"] for graphs in self.sides["warm"].graphs)

    @property
    def kept(self) -> bool:
        """Returns whether the warm processes found what was compiled."""
        return not self.missed and all(graphs["hit"] for graphs in self.sides["warm"].graphs)

    @property
    def share(self) -> Ratio:
        """Returns the first call's seconds beyond a steady one, warm against cold."""
        return ratio_of_medians(self.sides["warm"].extra, self.sides["cold"].extra, seed=self.settings.seed)

    @property
    def beyond_stock(self) -> Median:
        """Returns the seconds by which a warm process answers later than stock; negative where it is earlier."""
        return difference_of_medians(self.sides["warm"].answered, self.sides["stock"].answered, self.settings.seed)

    def follows(self) -> dict[str, Any]:
        """Returns plain values that follow from the raw ones."""
        extra = {name: asdict(median_of(side.extra)) for name, side in self.sides.items()}
        share, beyond = self.share.to_dict(), asdict(self.beyond_stock)
        return {"share": share, "beyond_stock": beyond, "missed": self.missed, "extra": extra}

    def sections(self) -> list[Section]:
        """Returns one table."""
        names = ("imports", "load", "compile", "call", "steady", "extra", "answered")
        rows: list[Row] = [(f"a fresh process, median {INTERVAL}", *self.sides), *self.table(names)]
        for name, title in (("hit", "found in the cache"), ("miss", "not found"), ("bypass", "not kept by torch")):
            counts = [sorted({graphs[name] for graphs in side.graphs}) for side in self.sides.values()]
            rows.append((f"graphs {title}", *(" or ".join(map(str, found)) for found in counts)))
        notes = [
            f"The first call's seconds beyond a steady one are {_share(self.share)} of it with a full cache. "
            f"The first answer comes {self.beyond_stock} s after stock's (negative: before it).",
            *self.few,
            f"{self.about}; {self.promise}: {yes(self.passed)}",
        ]
        return [Section(rows, notes)]

    def plots(self) -> list[Plot]:
        """Returns stages."""
        return [self.stages("Until the first call is answered")]


def _share(ratio: Ratio) -> str:
    between = "" if ratio.interval is None else f" ({ratio.interval[0]:.3f} to {ratio.interval[1]:.3f})"
    return f"{ratio.value:.3f}{between}"


def run_load(source: str, settings: LoadSettings, step: Step | None = None) -> LoadResult:
    """Measures ``load``; ``source`` is that of :func:`tts_compile.bench.models.load`."""
    s = settings
    with Progress(2 * (1 + s.repeats)) as progress, compile_cache() as cache_dir:
        wanted = Wanted(s.device, None, s.text if s.call else None, s.seed, cache_dir, dtype=s.dtype)
        ways = {side: functools.partial(measure, source, side, wanted) for side in SIDES}
        # Stock's first process reads libraries and weights into memory for both; the compiled side's compiles.
        calls = alternate(ways, 1 + s.repeats, step or progress)
    children = {side: [call.result for call in done] for side, done in calls.items()}
    sides = {side: _side(side, later) for side, (_, *later) in children.items()}
    for side, found in sides.items():
        found.cold = _seconds(side, children[side][0])
    called = proof.SPEAKING if s.call else ()
    report = children["compiled"][-1].found["report"]
    return LoadResult(settings=s, sides=sides, missing=_missing(children["compiled"], called), report=report)


def run_startup(source: str, settings: StartupSettings) -> StartupResult:
    """Measures ``startup``; ``source`` is that of :func:`tts_compile.bench.models.load`."""
    s = settings

    def process(side: str, cache_dir: str) -> Child:
        return measure(source, side, Wanted(s.device, None, s.text, s.seed, cache_dir, calls=1 + s.calls))

    def cold() -> Child:
        with compile_cache() as empty:
            return process("compiled", empty)

    with Progress(1 + 3 * s.repeats) as progress, compile_cache() as full:
        ways: dict[str, Callable[[], Child]] = {
            "stock": lambda: process("stock", full),
            "cold": cold,
            "warm": lambda: process("compiled", full),
        }
        progress("filling the cache")  # and the system's, with libraries and weights, for all sides
        first = ways["warm"]()
        done = alternate(ways, s.repeats, progress)
    children = {side: [call.result for call in calls] for side, calls in done.items()}
    compiled = [first, *children["cold"], *children["warm"]]
    return StartupResult(
        settings=s,
        sides={side: _side(side, found) for side, found in children.items()},
        missing=_missing(compiled, proof.SPEAKING),
        report=children["warm"][-1].found["report"],
    )


def _missing(children: Sequence[Child], called: Collection[str]) -> list[str]:
    """Returns the shortfalls of all compiled processes, each once."""
    found = [line for child in children for line in proof.shortfalls(child.found["report"], called)]
    return list(dict.fromkeys(found))


def _side(name: str, children: Sequence[Child]) -> Side:
    side = Side()
    for child in children:
        for stage, seconds in _seconds(name, child).items():
            getattr(side, stage).append(seconds)
        side.steady += [median(child.found["calls"][1:])] if child.found["calls"][1:] else []
        peaks = child.found["peaks"]
        side.memory.append(peaks["process"])
        side.load_memory.append(peaks["loading"])
        side.call_memory += [peaks["call"]] if peaks["call"] else []
        side.graphs.append(child.found["graphs"])
    return side


def _seconds(side: str, child: Child) -> dict[str, float]:
    """Returns the seconds between the marks of one process, and of its first call."""
    found = {name: child.marks[end] - child.marks[begin] for name, (begin, end) in _STAGES.items()}
    if side == "stock":
        del found["compile"]
    return found | ({"call": child.found["calls"][0]} if child.found["calls"] else {})
