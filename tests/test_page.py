"""Pages and figures: whole, self-contained, and true to the result."""

from __future__ import annotations

import dataclasses
import html
import json
import re

import pytest

from tts_compile.bench import page, plots
from tts_compile.bench.plots import Lines, Plot, Ratios, Stages
from tts_compile.bench.result import Result, Section, markdown
from tts_compile.measuring.stats import Median, Ratio

pytest.importorskip("matplotlib")


@dataclasses.dataclass
class Settings:
    """Settings that a page must escape."""

    seed: int = 77
    text: str = "</pre><script>alert('&')</script>"


MACHINE = {"cpu": "a processor", "torch_threads": 2, "versions": {"torch": "2.6.0", "chatterbox-tts": "0.1.7"}}
NASTY = Settings().text
RATIOS = {
    "T3": Ratio(2.5, (2.0, 3.0)),
    "flow": Ratio(1.0, (0.9, 1.1)),
    "vocoder": Ratio(0.8, (0.7, 0.9)),
    "rest": Ratio(1.0, None),
}
STAGES = Stages("Where time goes", {"stock": {"T3": 3.0, "flow": 1.0}, "compiled": {"T3": 1.0, "flow": 1.0}})
LINES = Lines(
    *("By length", "characters", "factor"),
    {"stock": [(90, Median(3.0, (2.0, 4.0))), (30, Median(5.0, None))], "compiled": [(30, Median(1.0, None))]},
    {"a level": 2.0},
)


EVENT = {"phase": "call", "error": "no <memory>", "action": "eager"}
ROW = {"asked": "auto", "ran": "inductor", "calls": 4321, "compiled_calls": 4321, "fallbacks": []}
ROW |= dict.fromkeys(("graphs", "graph_breaks", "recompiles_after_warmup"), 0)


class Found(Result):
    """A result with everything that a page can show."""

    subject = "found"
    title = "A <b>bench</b>"
    kept = True
    called = ("t3",)

    def sections(self) -> list[Section]:
        rows = [("what", "gain"), *RATIOS.items()]
        return [Section(rows, ["WARNING: few", NASTY], "A heading"), Section(notes=["a note"])]

    def plots(self) -> list[Plot]:
        return [STAGES, Ratios("Gains", RATIOS), LINES]


def found(*events: dict[str, str]) -> Found:
    report = {"components": {"t3": {**ROW, "fallbacks": list(events)}}}
    return Found(settings=Settings(), machine=MACHINE, report=report)


def test_a_page_needs_nothing_from_outside() -> None:
    source = page.render(found())
    assert re.findall(r"<(?:link|script|img|iframe)\b|\bsrc=|@import|url\((?!#)", source) == []
    namespaces = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert {*re.findall(r"https?://[^\"'<\s]+", source)} <= namespaces
    assert source.count("<svg") == source.count("</svg>") == 3


def test_a_page_shows_tables_proof_machine_and_raw_figures() -> None:
    source = page.render(found())
    shown = html.unescape(source)
    assert json.loads(html.unescape(source.split('<pre id="result">')[1].split("</pre>")[0])) == found().to_dict()
    for words in ("A heading", "4321", "a processor", "2.6.0", "77", "a note", "A <b>bench</b>", "against stock"):
        assert words in shown
    assert 'the compiled side did what stock does: <b class="passed">yes</b>' in shown
    assert '<span class="no-difference">1.00x (0.90 to 1.10): no difference</span>' in source
    for verdict in ("gain", "loss", "unknown"):
        assert f'<span class="{verdict}">' in source
    assert '<p class="warning">WARNING: few</p>' in source
    assert "<script>" not in source


def test_a_result_that_failed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Found, "kept", False)
    assert 'the compiled side did what stock does: <b class="failed">NO</b>' in page.render(found())


def test_a_fallback_is_a_failure_and_named() -> None:
    source = page.render(found(EVENT))
    assert '<b class="failed">NO</b>' in source
    assert '<p class="warning">FAILED: t3: call failed: no &lt;memory&gt;; eager</p>' in source


def test_a_page_claims_nothing_of_stock_that_was_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, words in (("promise", "calls were <alike>"), ("method", "Calls with one another")):
        monkeypatch.setattr(Found, name, words)
    source = page.render(found())
    assert 'calls were &lt;alike&gt;: <b class="passed">yes</b>' in source
    assert "Calls with one another" in source
    assert "stock does" not in source


@pytest.mark.parametrize("plot", [STAGES, Ratios("Gains", RATIOS | {"voice": Ratio(220.0, (200.0, 240.0))}), LINES])
def test_a_figure_is_the_same_each_time(plot: Plot) -> None:
    svg = plots.draw(plot)
    assert svg.startswith("<svg")
    assert svg == plots.draw(plot)


def test_tables_are_the_same_in_markdown() -> None:
    lines = markdown(found().sections(), "A bench").splitlines()
    assert lines[:4] == ["# A bench", "", "## A heading", ""]
    assert lines[6].startswith("| T3      | 2.50x (2.00 to 3.00): gain  ")
    assert lines[-1] == "a note"
