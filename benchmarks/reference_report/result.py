"""All parts together, and the figures that follow from them."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import Any

import reference
import tables
from chunks import CHUNKS
from tts_compile.bench.plots import Plot, Ratios
from tts_compile.bench.result import SIDES, Result, Section
from tts_compile.bench.soak import SoakResult
from tts_compile.bench.stages import STAGES
from tts_compile.bench.startup import LoadResult
from tts_compile.bench.synthesis import SpeechResult
from tts_compile.bench.voice import VoiceResult
from tts_compile.bucketing import BucketStats, ChunkBucketer
from tts_compile.measuring import stats
from tts_compile.measuring.stats import Median, Ratio, difference_of_medians, median_of, ratio_of_medians


@dataclass(frozen=True, kw_only=True)
class ReportResult(Result):
    """The figures of all parts.

    Attributes:
        soak: None where it was left out.
        spent: seconds that each part took to measure.
    """

    subject = "report"
    title = "Performance report"

    loading: LoadResult
    generation: SpeechResult
    voice: VoiceResult
    soak: SoakResult | None
    spent: dict[str, float]

    @property
    def parts(self) -> list[Result]:
        """Returns the results of all parts."""
        return [self.loading, self.generation, self.voice, *([self.soak] if self.soak else [])]

    @property
    def kept(self) -> bool:
        """Returns whether every part keeps its promise."""
        return all(part.kept for part in self.parts)

    @property
    def shortfalls(self) -> list[str]:
        """Returns the shortfalls of all parts and of the model that spoke, each once."""
        lines = [line for part in self.parts for line in part.shortfalls]
        return list(dict.fromkeys([*lines, *super().shortfalls]))

    @property
    def promise(self) -> str:
        """Returns the claims that are compared."""
        steady = "" if self.soak is None else f"; further calls: {self.soak.promise}"
        return f"text and voices as with stock; no failures while loading or speaking{steady}"

    @property
    def spoken_by(self) -> tuple[str, ...]:
        """Returns the sides of the text generation; ``"batch"`` where it was measured."""
        return (*SIDES, *["batch"] * bool(self.generation.batch))

    @property
    def measured(self) -> tuple[str, ...]:
        """Returns the chunks that were spoken."""
        return self.generation.texts

    def milliseconds(self, side: str) -> list[float]:
        """Returns the milliseconds of a chunk on average, a value per repeat."""
        return [1000 * seconds / len(self.measured) for seconds in self.generation.total(side)]

    def rate(self, side: str, unit: str) -> list[float]:
        """Returns ``"characters"`` or ``"words"`` a second, a value per repeat."""
        amount = sum(len(text if unit == "characters" else text.split()) for text in self.measured)
        return [amount / seconds for seconds in self.generation.total(side)]

    def gain(self, side: str) -> Ratio:
        """Returns how many times faster than stock all chunks are spoken."""
        return ratio_of_medians(self.generation.total("stock"), self.generation.total(side), seed=self.settings.seed)

    def hours(self, side: str) -> list[float]:
        """Returns the hours of work for an audiobook of :data:`reference.AUDIOBOOK_HOURS`, a value per repeat."""
        return [reference.AUDIOBOOK_HOURS * factor for factor in self.generation.factors(side)]

    def saved_hours(self, side: str) -> Median:
        """Returns the hours of work that stock needs beyond another side."""
        return difference_of_medians(self.hours("stock"), self.hours(side), seed=self.settings.seed)

    def instead_of(self, side: str) -> Median:
        """Returns the hours for speech that takes stock :data:`reference.AUDIOBOOK_HOURS`."""
        inverse = ratio_of_medians(self.generation.total(side), self.generation.total("stock"), seed=self.settings.seed)
        scaled = [reference.AUDIOBOOK_HOURS * end for end in inverse.interval or ()]
        return Median(reference.AUDIOBOOK_HOURS * inverse.value, (scaled[0], scaled[1]) if scaled else None)

    @property
    def saved_loading(self) -> Median:
        """Returns the seconds saved until a model is ready to be called; below 0 where it takes longer."""
        return difference_of_medians(*self.loading.values["ready"], seed=self.settings.seed)

    @property
    def buckets(self) -> BucketStats:
        """Returns how the six chunks spread over the buckets."""
        return ChunkBucketer().stats(CHUNKS)

    @property
    def gains(self) -> dict[str, Ratio]:
        """Returns the main figures."""
        found = {"ready to be called": self.loading.gains["ready"]}
        found |= {f"text generation{', batch' * (side == 'batch')}": self.gain(side) for side in self.spoken_by[1:]}
        voices = self.voice.gains
        return found | {"voice, new recording": voices["later"], "voice, known recording": voices["repeated"]}

    def to_dict(self) -> dict[str, Any]:
        """Returns raw values and what follows from them."""
        projection = {
            side: {"hours": asdict(median_of(self.hours(side))), "instead_of": asdict(self.instead_of(side))}
            for side in self.spoken_by
        }
        saved = {side: asdict(self.saved_hours(side)) for side in self.spoken_by[1:]}
        return {
            "bench": self.subject,
            "passed": self.passed,
            "shortfalls": self.shortfalls,
            "settings": asdict(self.settings),
            "machine": self.machine,
            "model": self.model,
            "config": self.config,
            "gains": stats.plain(self.gains),
            "loading": self.loading.to_dict(),
            "text_generation": self.generation.to_dict(),
            "voice_encoding": self.voice.to_dict(),
            "voice_average_ms": {
                side: {phase: 1000 * statistics.mean(values) for phase, values in voices.items()}
                for side, voices in self.voice.sides.items()
            },
            "buckets": self.buckets.to_dict(),
            "projection": {**projection, "saved_hours": saved, "saved_loading_s": asdict(self.saved_loading)},
            "stability": None if self.soak is None else self.soak.to_dict(),
            "spent": self.spent,
            "report": self.report,
        }

    def sections(self) -> list[Section]:
        """Returns every table of the reference report."""
        return tables.all_of(self)

    def plots(self) -> list[Plot]:
        """Returns stages, ratios, real-time factors, loading."""
        stages, _, factors = self.generation.plots()
        in_stages = {f"of it {name}": gain for name, gain in self.generation.gains.items() if name in STAGES}
        return [
            Ratios("How many times faster than stock", self.gains | in_stages),
            stages,
            factors,
            self.loading.plots()[0],
        ]
