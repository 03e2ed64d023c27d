"""A result as one HTML file that loads nothing from elsewhere: tables, figures, proof, machine, raw figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..measuring.stats import FEWEST
from .plots import draw
from .result import Result, Row, Section, as_json

_PROOF = ("asked", "ran", "calls", "compiled_calls", "graphs", "graph_breaks", "recompiles_after_warmup")


def render(result: Result) -> str:
    """Returns the page's source, made from ``page.html``."""
    import jinja2

    plain = result.to_dict()
    sections = result.shown()
    if result.report:
        sections.append(Section(proof_rows(result.report), heading="Components, as counted"))
    sections.append(Section(_facts(plain), heading="Machine, versions, settings"))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html").render(
        result=result,
        sections=sections,
        figures=[draw(plot) for plot in result.plots()],
        raw=as_json(plain),
        fewest=FEWEST,
    )


def proof_rows(report: Mapping[str, Any]) -> list[Row]:
    """Returns a table of an execution report given as plain values."""
    titles = ("component", *(column.replace("_", " ") for column in _PROOF), "events")
    rows = report["components"].items()
    return [titles, *((name, *(str(row[c]) for c in _PROOF), str(len(row["fallbacks"]))) for name, row in rows)]


def _facts(plain: Mapping[str, Any]) -> list[Row]:
    """Returns a table of nested values, one below the other."""
    rows: list[Row] = [("", "")]
    for part in ("machine", "model", "settings", "config"):
        for name, value in (plain.get(part) or {}).items():
            if isinstance(value, Mapping):
                rows += [(f"{part}, {name}, {inner}", str(found)) for inner, found in value.items()]
            else:
                rows.append((f"{part}, {name}", str(value)))
    return rows
