"""The result of a benchmark: its figures, its verdict, and their tables and plots in one form for every output."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from ..measuring import machine, proof, stats
from ..measuring.stats import LEVEL, Ratio, ratio_of_medians, spread
from ..utils.tables import markdown_table
from .plots import Plot, Ratios

Cell = str | Ratio
Row = tuple[Cell, ...]
Figures = dict[str, Any]  # mostly lists, with a value per repeat
LEAST_DB = 60.0  # of signal to error against stock
INTERVAL = f"({LEVEL}% interval)"
SIDES = ("stock", "compiled")
_BESIDE = ("model", "config", "report", "sides")  # left out of the JSON where a benchmark has none


def option(default: Any, about: str = "", **details: Any) -> Any:
    """Returns a field of a settings class that the command line has an option for.

    Args:
        default: the value without the option.
        about: help of the option; the command line adds the default.
        details: ``least`` (of a number), ``most``, ``metavar``, ``choices``, ``count`` (of values).
    """
    return field(default=default, metadata={"about": about, **details})


@dataclass(frozen=True, kw_only=True)
class Repeated:
    """Settings that every benchmark with repeats has."""

    device: str = "cpu"
    seed: int = 0
    repeats: int = option(5, f"of every side; fewer than {stats.FEWEST} have no intervals", least=1)


@dataclass(frozen=True)
class Section:
    """A table and the lines below it.

    Attributes:
        rows: the first one holds the titles.
        notes: paragraphs.
        heading: used where there are several sections.
    """

    rows: Sequence[Sequence[Cell]] = ()
    notes: Sequence[str] = ()
    heading: str = ""


@dataclass(frozen=True, kw_only=True)
class Result(ABC):
    """The base of every benchmark's result; ``str()`` is its tables, :meth:`to_dict` is JSON-able.

    A subclass adds its raw figures as fields, and what follows from them as methods.

    Attributes:
        subject: the benchmark's name on the command line.
        title: the page's title.
        called: the components that the measured calls must reach.
        method: what is measured against what, for the page.
        titles: words for quantities, by their names in the JSON.
        more_is_better: the quantities of which more is better.
        without_gain: the quantities that are shown and not compared.
        units: divisors of quantities for tables.
        settings: the benchmark's.
        machine: see :func:`tts_compile.measuring.machine.describe`.
        model: class, device, dtype and sizes of the model.
        config: the configuration of the compiled side.
        report: the execution report of the compiled side as plain values.
        sides: by name, stock first: :data:`Figures`, without the quantities that a side does not have.
    """

    subject: ClassVar[str]
    title: ClassVar[str]
    called: ClassVar[Collection[str]] = proof.SPEAKING
    method: ClassVar[str] = f"tts_compile against stock, median and {LEVEL}% bootstrap interval of alternating calls"
    titles: ClassVar[Mapping[str, str]] = {}
    more_is_better: ClassVar[Collection[str]] = ()
    without_gain: ClassVar[Collection[str]] = ()
    units: ClassVar[Mapping[str, float]] = {}

    settings: Any
    machine: dict[str, Any] = field(default_factory=machine.describe)
    model: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    sides: dict[str, Any] = field(default_factory=dict)

    @property
    def promise(self) -> str:
        """Returns the claim that :attr:`passed` checks, without anything that was not compared."""
        return "the compiled side did what stock does"

    @property
    @abstractmethod
    def kept(self) -> bool:
        """Returns whether the promise is kept; speed is no part of it."""

    @property
    def values(self) -> dict[str, Sequence[Sequence[float]]]:
        """Returns the quantities of the table, each with the values of every side; an empty list for a missing one."""
        return {
            name: [[value / self.units.get(name, 1) for value in side.get(name, ())] for side in self.sides.values()]
            for name in self.titles
            if any(name in side for side in self.sides.values())
        }

    @property
    def gains(self) -> dict[str, Ratio]:
        """Returns how many times better the last side is than the first, by quantity."""
        found = {}
        for name, (first, *_, last) in self.values.items():
            above, below = (last, first) if name in self.more_is_better else (first, last)
            if above and below and name not in self.without_gain:
                found[name] = ratio_of_medians(above, below, seed=self.settings.seed)
        return found

    @property
    def heading(self) -> str:
        """Returns the words above the quantities."""
        return self.title

    def notes(self) -> list[str]:
        """Returns the lines below the table."""
        return [*self.few, self.about]

    def rows(self) -> list[Row]:
        """Returns the rows of all quantities: their medians by side, and the gain."""
        gains = self.gains
        return [
            (self.titles.get(name, name), *map(spread, sides), gains.get(name, ""))
            for name, sides in self.values.items()
        ]

    def sections(self) -> list[Section]:
        """Returns the tables: by default one of all quantities."""
        titles = (f"{self.heading}, median {INTERVAL}", *(self.sides or SIDES), f"gain {INTERVAL}")
        return [Section([titles, *self.rows()], self.notes())]

    def plots(self) -> list[Plot]:
        """Returns the figures: by default the gains, where there are any."""
        gains = {self.titles.get(name, name).removesuffix(", s"): gain for name, gain in self.gains.items()}
        return [Ratios("How many times better than stock", gains)] if gains else []

    def follows(self) -> dict[str, Any]:
        """Returns plain values that follow from the raw ones, for the JSON."""
        return {"gains": stats.plain(self.gains)}

    @property
    def shortfalls(self) -> list[str]:
        """Returns a sentence for each component that did not run as asked, and for each fallback."""
        return proof.shortfalls(self.report, self.called)

    @property
    def passed(self) -> bool:
        """Returns whether the promise is kept and every component ran as asked."""
        return self.kept and not self.shortfalls

    def to_dict(self) -> dict[str, Any]:
        """Returns raw values and what follows from them; an infinite ratio is None beside ``bit_identical``."""
        raw = {name: value for name, value in asdict(self).items() if value or name not in _BESIDE}
        if tuple(self.sides) == SIDES:
            raw |= raw.pop("sides")  # two sides stand under their own names
        if "signal_to_error_db" in raw:
            raw["bit_identical"] = raw["signal_to_error_db"] == math.inf
            if raw["bit_identical"]:
                raw["signal_to_error_db"] = None
        verdict = {"bench": self.subject, "passed": self.passed, "shortfalls": self.shortfalls}
        return verdict | raw | self.follows()

    def shown(self) -> list[Section]:
        """Returns the tables, and last the components that did not run as asked."""
        lines = [f"FAILED: {line}" for line in self.shortfalls]
        return [*self.sections(), *([Section(notes=lines)] if lines else [])]

    def __str__(self) -> str:
        return markdown(self.shown())

    @property
    def about(self) -> str:
        """Returns the model's dtype and device, the machine and the versions, for the line below a table."""
        versions, model = self.machine["versions"], self.model
        kind = f"{model['dtype']}, {model['device']}" if model else str(getattr(self.settings, "device", "cpu"))
        return (
            f"{kind}; {self.machine['cpu']}, {self.machine['torch_threads']} threads; "
            f"torch {versions['torch']}, chatterbox-tts {versions['chatterbox-tts']}"
        )

    @property
    def few(self) -> list[str]:
        """Returns a warning where there are too few repeats for intervals."""
        repeats, least = self.settings.repeats, stats.FEWEST
        return [f"WARNING: {repeats} repeats, fewer than {least}: too few for intervals"] * (repeats < least)


def decibels(ratio: float | None) -> str:
    """Returns a signal-to-error ratio for a table's cell."""
    return "lengths differ" if ratio is None else f"{ratio:.1f} dB"


def ran(report: Mapping[str, Any]) -> str:
    """Returns what each component ran as, and how many calls were counted inside compiled code."""
    rows = {name: row for name, row in report["components"].items() if row["calls"]}
    parts = [f"{name}: {row['ran']} ({row['compiled_calls']} of {row['calls']} compiled)" for name, row in rows.items()]
    return f"ran: {', '.join(parts) or 'stock'}"


def markdown(sections: Iterable[Section], title: str = "") -> str:
    """Returns one text that reads well on a terminal too."""
    parts = [f"# {title}"] if title else []
    for section in sections:
        parts += [f"## {section.heading}"] if section.heading else []
        parts += [markdown_table(section.rows)] if section.rows else []
        parts += section.notes
    return "\n\n".join(parts)


def as_json(plain: Mapping[str, Any]) -> str:
    """Returns JSON; a figure that is not finite, which JSON has no number for, becomes ``"nan"`` or ``"-inf"``.

    >>> print(as_json({"ratio": float("nan")}))
    {
      "ratio": "nan"
    }
    """
    finite = json.loads(json.dumps(plain), parse_constant=lambda constant: str(float(constant)))
    return json.dumps(finite, indent=2, allow_nan=False)


def sums(lists: Iterable[Sequence[float]]) -> list[float]:
    """Returns the sums of values that belong to the same repeat."""
    return [sum(together) for together in zip(*lists)]
