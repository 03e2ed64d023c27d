"""The policies that were tried, and the choice among them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..config import CompileConfig, ComponentPolicy
from ..measuring.proof import COMPILED
from ..measuring.stats import Ratio, ratio_of_medians, spread
from ..utils.tables import markdown_table

STOCK = "stock"


@dataclass
class Trial:
    """One policy of one component, and what was measured of it.

    Attributes:
        component: its name.
        way: the policy in a word or two; ``"stock"`` is the other side of all comparisons.
        policy: the policy.
        calls: made in each repeat; for T3, flow, vocoder and watermark, one for each text.
        seconds: of all calls, a value per repeat; empty where that was not measured.
        extra_seconds: cost of the first round beyond a later one: mostly compiling.
        refused: why the policy may not be kept, however fast it is; empty if it may.
        gain: over stock; None where that was not measured.
        kept: whether it was chosen.
    """

    component: str
    way: str
    policy: ComponentPolicy
    calls: int
    seconds: tuple[float, ...] = ()
    extra_seconds: float = 0.0
    refused: str = ""
    gain: Ratio | None = None
    kept: bool = False

    @property
    def pays_after(self) -> float | None:
        """Returns the number of calls that save the first round's extra seconds; None where there is no gain."""
        if self.gain is None or self.gain.verdict != "gain":
            return None
        saved = self.gain.value - 1  # of its own time
        return self.extra_seconds / (saved * statistics.median(self.seconds) / self.calls)


@dataclass(frozen=True)
class Tuning:
    """All trials and the choice; ``str()`` is a table, :meth:`to_dict` is JSON-able.

    Attributes:
        config: with the chosen policies.
        key: the device, versions, model and settings that the choice is for.
        budget: seconds after which nothing new was tried; None for no limit.
        complete: whether everything was measured within the budget.
        stored: the file that the choice was read from, or written to.
        reused: whether the choice was read, and nothing measured.
    """

    config: CompileConfig
    trials: tuple[Trial, ...]
    complete: bool
    key: dict[str, Any]
    budget: float | None
    stored: str
    reused: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values."""
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
        lines = [markdown_table(rows), "", f"stored in {self.stored}" + " and read from there" * self.reused]
        if not self.complete:
            lines.append("the budget was spent before everything was measured: what was not stays stock")
        return "\n".join(lines)


def best_of(trials: Sequence[Trial]) -> Trial:
    """Returns stock's trial, or the first later one that is faster beyond noise than every trial before it.

    A component in which nothing is compiled saves seconds of imports in the first call, and costs nothing: it is kept
    unless it is slower.
    """
    best = trials[0]
    for trial in trials[1:]:
        if not trial.seconds or trial.refused:
            continue
        verdict = ratio_of_medians(best.seconds, trial.seconds).verdict
        if verdict == "gain" or (verdict == "no difference" and trial.component not in COMPILED):
            best = trial
    return best
