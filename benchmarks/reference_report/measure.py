"""Every part of the report in order, on one model."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ...api import compile_model
from ...config import CompileConfig
from ...errors import InputError
from ...timing.blocks import Stopwatch
from .. import encoding, loading, soak, texts
from ..models import Progress, load
from . import reference
from .chunks import CHUNKS
from .result import ReportResult


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        repeats: of every alternation, that of the voice apart.
        texts: of the six chunks, how many are measured; at least three, for real-time factors by length.
        voice_runs: of each side.
        voice_seconds: of the recordings.
        batch: have ``generate_batch`` speak the chunks too.
        first_call: make a call in every fresh process.
        soak_calls: rounded up to whole rounds of twelve, of which memory needs three; 0 leaves them out.
    """

    device: str = "cpu"
    repeats: int = 5
    texts: int = reference.MEASURED
    voice_runs: int = reference.VOICE_RUNS
    voice_seconds: float = 10.0
    batch: bool = True
    first_call: bool = True
    soak_calls: int = 36
    seed: int = 0


def run(source: str, settings: Settings) -> ReportResult:
    """Measure; ``source`` as :func:`tts_compile.bench.models.load` takes it.

    Raises:
        InputError: for fewer than three texts, or more than there are; for further calls that are compared with none.
    """
    if 0 < settings.soak_calls <= soak.ROUND:
        raise InputError(f"soak_calls must be 0 or more than {soak.ROUND}: each round is compared with the first one")
    if not reference.MEASURED <= settings.texts <= len(CHUNKS):
        raise InputError(f"texts must be from {reference.MEASURED} to {len(CHUNKS)}, got {settings.texts}")
    s = settings
    fresh = loading.Settings(s.device, s.repeats, loading.TEXT if s.first_call else None, s.seed)
    spoken = texts.Settings(CHUNKS[: s.texts], s.device, s.repeats, s.seed, batch=s.batch)
    voices = encoding.Settings(s.device, s.voice_runs, s.voice_seconds)
    calls = soak.Settings(s.device, s.soak_calls, s.seed)
    spent: dict[str, float] = {}

    @contextlib.contextmanager
    def part(name: str) -> Iterator[None]:
        with Stopwatch() as watch:
            yield
        spent[name] = watch.seconds

    with (
        tempfile.TemporaryDirectory(prefix="tts-compile-report-", ignore_cleanup_errors=True) as name,
        Progress(fresh.steps + 1 + spoken.steps + voices.steps + calls.rounds) as progress,
    ):
        folder = Path(name)
        with part("loading"):  # first, while this process holds no model itself
            loaded = loading.measure(source, fresh, progress)
        with progress.step("loading"):
            tts = load(source, s.device)
        with compile_model(tts, CompileConfig.from_env().replace(cache_dir=str(folder / "cache"))) as fast:
            with part("text generation, its warm-up included"):
                generated = texts.measure(fast, spoken, progress)
            with part("voice encoding"):
                encoded = encoding.measure(fast, voices, folder, progress)
            steady = None
            with part("stability"):
                if s.soak_calls:
                    steady = soak.measure(fast, calls, folder, progress)
            return ReportResult(s, loaded, generated, encoded, steady, spent, fast.report().to_dict())
