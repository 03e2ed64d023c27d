"""A result as one HTML file that needs nothing from outside: tables, figures, proof, machine, raw figures."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from ..measuring.stats import FEWEST, Ratio, yes
from .plots import draw
from .section import Cell, Result, Section, as_json

_STYLE = """
:root { --ink: #1f2430; --soft: #5b6372; --line: #e3e6eb; --back: #f5f6f8; --blue: #2563a8 }
* { box-sizing: border-box }
body { margin: 0; background: var(--back); color: var(--ink) }
body { font: 15px/1.55 system-ui, "Segoe UI", Roboto, sans-serif }
main { max-width: 68rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .35rem }
h2 { font-size: 1.15rem; margin: 0 0 .8rem }
p { margin: .6rem 0 0; color: var(--soft); overflow-wrap: anywhere }
header p { margin: 0 }
section { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 1.1rem 1.3rem 1.2rem;
  margin-top: 1.1rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .92rem }
th, td { text-align: left; padding: .42rem .8rem .42rem 0; border-bottom: 1px solid var(--line); vertical-align: top }
th { font-weight: 600; color: var(--soft); font-size: .82rem }
tr:last-child td { border-bottom: 0 }
td:first-child { color: var(--soft) }
.gain, .loss, .no-difference, .unknown { white-space: nowrap; border-radius: 99px; padding: .08rem .6rem }
.gain { background: #e2f3ea; color: #11603c }
.loss { background: #fbe5e3; color: #9b2018 }
.no-difference { background: #eceef1; color: #4b5260 }
.unknown { background: #fdf2d8; color: #7a5300 }
.warning { color: #9b2018; font-weight: 600 }
.passed { color: #11603c } .failed { color: #9b2018 }
svg { display: block; width: 100%; max-width: 46rem; height: auto; margin: 0 auto }
svg + svg { margin-top: 1.2rem }
pre { overflow: auto; max-height: 28rem; font: 12px/1.45 ui-monospace, Menlo, Consolas, monospace; margin: .8rem 0 0 }
summary { cursor: pointer; color: var(--blue) }
"""


def render(result: Result) -> str:
    """The page's source."""
    plain = result.to_dict()
    verdict = "passed" if result.passed else "failed"
    first, *others = result.sections()
    figures = "\n".join(map(draw, result.plots()))
    parts = [
        f"<header><h1>{_escaped(result.title)}</h1><p>{_escaped(result.method)}. {_escaped(result.promise)}: "
        f'<b class="{verdict}">{yes(result.passed)}</b>. A gain or a loss is called one only where the interval '
        f"excludes 1, and there are at least {FEWEST} repeats.</p></header>",
        _section(first),
        f"<section><h2>Figures</h2>{figures}</section>" if figures else "",
        *map(_section, others),
        _section(Section(_proof(plain.get("report")), heading="What ran, as counted")) if plain.get("report") else "",
        _section(Section(_facts(plain), heading="Machine, versions, settings")),
        f'<section><details><summary>Raw figures (JSON)</summary><pre id="result">{_escaped(as_json(plain))}</pre>'
        "</details></section>",
    ]
    body = "\n".join(filter(None, parts))
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta name="viewport" '
        f'content="width=device-width, initial-scale=1">\n<title>{_escaped(result.title)}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _section(section: Section) -> str:
    heading = f"<h2>{_escaped(section.heading)}</h2>" if section.heading else ""
    notes = "".join(
        f"<p{' class=warning' if note.startswith('WARNING') else ''}>{_escaped(note)}</p>" for note in section.notes
    )
    return f"<section>{heading}{_table(section.rows)}{notes}</section>"


def _table(rows: Sequence[Sequence[Cell]]) -> str:
    if not rows:
        return ""
    head = "".join(f"<th>{_escaped(str(cell))}</th>" for cell in rows[0])
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows[1:])
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(cell: Cell) -> str:
    text = _escaped(str(cell))
    if isinstance(cell, Ratio):
        text = f'<span class="{cell.verdict.replace(" ", "-")}">{text}</span>'
    return f"<td>{text}</td>"


def _proof(report: Mapping[str, Any] | None) -> list[tuple[Cell, ...]]:
    columns = ("asked", "ran", "calls", "compiled_calls", "graphs", "graph_breaks", "recompiles_after_warmup")
    rows = (report or {}).get("components", {})
    titles = ("component", *(column.replace("_", " ") for column in columns), "events")
    return [
        titles,
        *((name, *(str(row[column]) for column in columns), str(len(row["fallbacks"]))) for name, row in rows.items()),
    ]


def _facts(plain: Mapping[str, Any]) -> list[tuple[Cell, ...]]:
    """Nested values one below the other."""
    rows: list[tuple[Cell, ...]] = [("", "")]
    for part in ("machine", "model", "settings", "config"):
        for name, value in (plain.get(part) or {}).items():
            if isinstance(value, Mapping):
                rows += [(f"{part}, {name}, {inner}", str(found)) for inner, found in value.items()]
            else:
                rows.append((f"{part}, {name}", str(value)))
    return rows


def _escaped(text: str) -> str:
    return html.escape(text, quote=True)
