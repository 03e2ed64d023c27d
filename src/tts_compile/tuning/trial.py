"""What was tried, and which of it is chosen."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..config import CompileConfig, ComponentPolicy
from ..measuring.stats import Ratio, ratio_of_medians, spread
from ..utils.tables import markdown_table

STOCK = "stock"
COMPILED = ("t3", "flow", "vocoder")


@dataclass(frozen=True)
class Trial:
    """One policy of one component, measured.

    Attributes:
        component: its name.
        way: what was tried, in a word or two; ``"stock"`` is the other side of all comparisons.
        policy: that was tried.
        calls: made in each repeat; for T3, flow, vocoder and watermark, one for each text.
        seconds: of all of them, a value per repeat.
        extra_seconds: what the first round cost beyond a later one: compiling, mostly.
        refused: why it may not be kept, however fast it is; empty where nothing is wrong with it.
        gain: over stock; None where that was not measured.
        kept: whether it was chosen.
    """

    component: str
    way: str
    policy: ComponentPolicy
    calls: int
    seconds: tuple[float, ...]
    extra_seconds: float
    refused: str
    gain: Ratio | None
    kept: bool = False

    @property
    def pays_after(self) -> float | None:
        """Calls after which the first round's extra has paid for itself; None where there is no gain."""
        if self.gain is None or self.gain.verdict != "gain":
            return None
        saved = self.gain.value - 1  # of its own time
        return self.extra_seconds / (saved * statistics.median(self.seconds) / self.calls)


@dataclass(frozen=True)
class Tuning:
    """What was tried and chosen; ``str()`` is a table, :meth:`to_dict` is JSON-able.

    Attributes:
        config: with the chosen policies.
        trials: all of them.
        key: what the choice belongs to: device, versions, model.
        complete: whether everything was measured within the budget.
        stored: the file that it was read from, or written to.
        reused: whether nothing was measured this time.
    """

    config: CompileConfig
    trials: tuple[Trial, ...]
    key: dict[str, Any]
    budget: float | None
    complete: bool
    stored: str
    reused: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "config": self.config.to_dict()}

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [
            ("component", "tried", "seconds", "over stock", "first round's extra, s", "pays after", "")
        ]
        for trial in self.trials:
            stock = trial.way == STOCK
            pays = "" if stock or trial.pays_after is None else f"{math.ceil(trial.pays_after)} calls"
            word = "kept" if trial.kept else trial.refused
            rows.append((
                trial.component,
                trial.way,
                spread(trial.seconds) if trial.seconds else "not measured",
                "" if stock or trial.gain is None else str(trial.gain),
                "" if stock else f"{trial.extra_seconds:.1f}",
                pays,
                word,
            ))  # fmt: skip
        lines = [markdown_table(rows), "", f"kept in {self.stored}" + " and read from there" * self.reused]
        if not self.complete:
            lines.append("the budget was spent before everything was measured: what was not stays stock")
        return "\n".join(lines)


def best_of(trials: Sequence[Trial]) -> Trial:
    """Stock, unless something is faster beyond noise; likewise for each of the less simple ones that follow.

    Components in which nothing is compiled spare stock's first call seconds of imports, and cost nothing: they are
    kept unless they are slower.
    """
    best = trials[0]
    for trial in trials[1:]:
        if not trial.seconds or trial.refused:
            continue
        verdict = ratio_of_medians(best.seconds, trial.seconds).verdict
        if verdict == "gain" or (verdict == "no difference" and trial.component not in COMPILED):
            best = trial
    return best
