"""What a bench shows: tables, lines below them and figures, the same on a terminal, in Markdown and on a page."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..measuring.stats import LEVEL, Ratio
from ..utils.tables import markdown_table
from .plots import Plot

Cell = str | Ratio


@dataclass(frozen=True)
class Section:
    """A table, the lines below it, and a heading where there is more than one.

    Attributes:
        rows: the first one holds the titles.
        notes: paragraphs.
    """

    rows: Sequence[Sequence[Cell]] = ()
    notes: Sequence[str] = ()
    heading: str = ""


class Result(ABC):
    """What every bench hands back; ``str()`` is its tables."""

    @property
    @abstractmethod
    def title(self) -> str:
        """Of the page."""

    @property
    @abstractmethod
    def passed(self) -> bool:
        """Whether :attr:`promise` is kept; speed is no part of it."""

    @property
    def promise(self) -> str:
        """What :attr:`passed` says, and nothing that was not looked at."""
        return "the compiled side did what stock does"

    @property
    def method(self) -> str:
        """What is measured against what, for the page."""
        return f"tts_compile against stock, median and {LEVEL}% bootstrap interval of alternating calls"

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Raw values and what follows from them, as plain values."""

    @abstractmethod
    def sections(self) -> list[Section]:
        """Its tables."""

    def plots(self) -> list[Plot]:
        """Its figures."""
        return []

    def __str__(self) -> str:
        return markdown(self.sections())


def markdown(sections: Iterable[Section], title: str = "") -> str:
    """One text that reads well on a terminal too."""
    parts = [f"# {title}"] if title else []
    for section in sections:
        parts += [f"## {section.heading}"] if section.heading else []
        parts += [markdown_table(section.rows)] if section.rows else []
        parts += section.notes
    return "\n\n".join(parts)


def as_json(plain: Mapping[str, Any]) -> str:
    """JSON of plain values; figures that are not finite, which it has no numbers for, become ``"nan"`` or ``"-inf"``.

    >>> print(as_json({"ratio": float("nan")}))
    {
      "ratio": "nan"
    }
    """
    return json.dumps(_finite(plain), indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def where(machine: dict[str, Any], model: dict[str, Any]) -> str:
    """The machine, the model's dtype and device and the versions, for the line below a table."""
    versions = machine["versions"]
    return (
        f"{model['dtype']}, {model['device']}; {machine['cpu']}, {machine['torch_threads']} threads; "
        f"torch {versions['torch']}, chatterbox-tts {versions['chatterbox-tts']}"
    )


def ran(report: dict[str, Any]) -> str:
    """What ran, and how much of it was counted inside compiled code."""
    rows = {name: row for name, row in report["components"].items() if row["calls"]}
    parts = [f"{name}: {row['ran']} ({row['compiled_calls']} of {row['calls']} compiled)" for name, row in rows.items()]
    return f"ran: {', '.join(parts) or 'stock'}"
