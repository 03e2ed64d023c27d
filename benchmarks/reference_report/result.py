"""All parts together, and what follows from them."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ...bucketing import BucketStats, ChunkBucketer
from ...measuring import stats
from ...measuring.stats import Median, Ratio, difference_of_medians, median_of, ratio_of_medians
from ..encoding import EncodingResult
from ..loading import LoadingResult
from ..plots import Plot, Ratios
from ..section import Result, Section
from ..soak import SoakResult
from ..texts import SIDES, TextsResult
from . import reference, tables
from .chunks import CHUNKS

if TYPE_CHECKING:
    from .parts import Settings


@dataclass(frozen=True)
class ReportResult(Result):
    """Everything measured; :meth:`to_dict` is JSON-able, ``str()`` are the tables.

    Attributes:
        soak: None where it was left out.
        spent: seconds that each part took to measure.
        report: the execution report of the model that spoke, as plain values.
    """

    settings: Settings
    loading: LoadingResult
    texts: TextsResult
    voice: EncodingResult
    soak: SoakResult | None
    spent: dict[str, float]
    report: dict[str, Any]

    @property
    def title(self) -> str:
        """Of the page."""
        return "Performance report"

    @property
    def passed(self) -> bool:
        """Whether :attr:`promise` is kept; speed is no part of it."""
        steady = self.soak is None or self.soak.passed
        return self.loading.passed and self.texts.passed and self.voice.identical and steady and not self.events

    @property
    def promise(self) -> str:
        """What is compared, and what is not."""
        steady = "" if self.soak is None else f"; further calls: {self.soak.promise}"
        return f"text and voices as with stock; no failures while loading or speaking{steady}"

    @property
    def events(self) -> list[dict[str, Any]]:
        """Every fallback event of the model that spoke."""
        return [event for row in self.report["components"].values() for event in row["fallbacks"]]

    @property
    def sides(self) -> tuple[str, ...]:
        """Of the text generation; ``"batch"`` where it was measured."""
        return (*SIDES, *["batch"] * bool(self.texts.batch))

    @property
    def measured(self) -> tuple[str, ...]:
        """The chunks that were spoken."""
        return self.texts.settings.texts

    def milliseconds(self, side: str) -> list[float]:
        """For a chunk on average, a value per repeat."""
        return [1000 * seconds / len(self.measured) for seconds in self.texts.total(side)]

    def rate(self, side: str, unit: str) -> list[float]:
        """``"characters"`` or ``"words"`` a second, a value per repeat."""
        amount = sum(len(text if unit == "characters" else text.split()) for text in self.measured)
        return [amount / seconds for seconds in self.texts.total(side)]

    def gain(self, side: str) -> Ratio:
        """How many times faster than stock all chunks are spoken."""
        return ratio_of_medians(self.texts.total("stock"), self.texts.total(side), seed=self.settings.seed)

    def hours(self, side: str) -> list[float]:
        """Of work for an audiobook of :data:`reference.AUDIOBOOK_HOURS`, a value per repeat."""
        return [reference.AUDIOBOOK_HOURS * factor for factor in self.texts.factors(side)]

    def saved_hours(self, side: str) -> Median:
        """Hours of work that stock needs beyond another side."""
        return difference_of_medians(self.hours("stock"), self.hours(side), seed=self.settings.seed)

    def instead_of(self, side: str) -> Median:
        """Hours for what takes stock :data:`reference.AUDIOBOOK_HOURS` of work."""
        inverse = ratio_of_medians(self.texts.total(side), self.texts.total("stock"), seed=self.settings.seed)
        scaled = [reference.AUDIOBOOK_HOURS * end for end in inverse.interval or ()]
        return Median(reference.AUDIOBOOK_HOURS * inverse.value, (scaled[0], scaled[1]) if scaled else None)

    @property
    def saved_loading(self) -> Median:
        """Seconds less until a model is ready to be called; below 0 where it takes longer."""
        stock, compiled = self.loading.stock.ready, self.loading.compiled.ready
        return difference_of_medians(stock, compiled, seed=self.settings.seed)

    @property
    def buckets(self) -> BucketStats:
        """How the six chunks spread."""
        return ChunkBucketer().stats(CHUNKS)

    @property
    def gains(self) -> dict[str, Ratio]:
        """The main figures."""
        found = {"ready to be called": self.loading.gains["ready"]}
        found |= {f"text generation{', batch' * (side == 'batch')}": self.gain(side) for side in self.sides[1:]}
        return found | {
            "voice, new recording": self.voice.gain("new"),
            "voice, known recording": self.voice.gain("again"),
        }

    def to_dict(self) -> dict[str, Any]:
        """Raw values and what follows from them."""
        projection = {
            side: {"hours": asdict(median_of(self.hours(side))), "instead_of": asdict(self.instead_of(side))}
            for side in self.sides
        }
        saved = {side: asdict(self.saved_hours(side)) for side in self.sides[1:]}
        return {
            "bench": "report",
            "passed": self.passed,
            "settings": asdict(self.settings),
            "machine": self.texts.machine,
            "model": self.texts.model,
            "config": self.texts.config,
            "gains": stats.plain(self.gains),
            "loading": self.loading.to_dict(),
            "text_generation": self.texts.to_dict(),
            "voice_encoding": self.voice.to_dict(),
            "voice_average_ms": {
                side: {kind: 1000 * statistics.mean(values) for kind, values in getattr(self.voice, side).items()}
                for side in SIDES
            },
            "buckets": self.buckets.to_dict(),
            "projection": {**projection, "saved_hours": saved, "saved_loading_s": asdict(self.saved_loading)},
            "stability": None if self.soak is None else self.soak.to_dict(),
            "spent": self.spent,
            "report": self.report,
        }

    def sections(self) -> list[Section]:
        """Every table of the reference report."""
        return tables.all_of(self)

    def plots(self) -> list[Plot]:
        """Stages, ratios, real-time factors, loading."""
        stages, _, factors = self.texts.plots()
        ratios = self.gains | {f"of it {stage}": gain for stage, gain in self.texts.stage_gains.items()}
        return [Ratios("How many times faster than stock", ratios), stages, factors, self.loading.plots()[0]]
