"""The bench of timing itself: kinds, limits and exit codes, by a clock of its own."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from tts_compile.cli import main as cli
from tts_compile.timing import blocks as timing


@pytest.mark.parametrize(("tick", "code"), [(1e-7, 0), (1e-5, 1)])
def test_a_limit_that_is_exceeded_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tick: float, code: int
) -> None:
    """A block that is on reads the clock twice, one that is off not at all; the watch around them, at either end."""
    ticks = itertools.count()
    monkeypatch.setattr(timing, "read_clock", lambda: next(ticks) * tick)
    assert cli.main(["bench", "overhead", "--json", "--repeats", "3", "--blocks", "200"]) == code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    medians = {name: cost["median"] for name, cost in found["costs"].items()}
    on, off = pytest.approx(401 * tick * 1e9 / 200), pytest.approx(1 * tick * 1e9 / 200)
    assert medians == {
        "off": off,
        "on": on,
        "on, inside another": on,
        "decorator, off": off,
        "decorator, on": on,
        "with memory": pytest.approx(5 * tick * 1e9 / 2),
    }
    assert found["passed"] == (code == 0)


def test_the_table_names_what_is_too_slow(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    ticks = itertools.count()
    monkeypatch.setattr(timing, "read_clock", lambda: next(ticks) * 1e-5)
    cli.main(["bench", "overhead", "--repeats", "1", "--blocks", "100"])
    lines = {cells[1].strip(): cells[4].strip() for line in capsys.readouterr().out.splitlines()
             if len(cells := line.split("|")) == 6}  # fmt: skip
    assert [lines[name] for name in ("off", "on", "decorator, off", "with memory")] == ["yes", "NO", "yes", ""]
