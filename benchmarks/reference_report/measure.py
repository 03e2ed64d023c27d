"""Every part of the report in order, on one model."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import reference
from chunks import CHUNKS
from result import ReportResult
from tts_compile.api import compile_model
from tts_compile.bench import soak, startup, synthesis, voice
from tts_compile.bench.models import Compiled, load
from tts_compile.bench.result import Repeated, option
from tts_compile.config import CompileConfig
from tts_compile.errors import InputError
from tts_compile.measuring.progress import Progress
from tts_compile.timing.blocks import Stopwatch


@dataclass(frozen=True, kw_only=True)
class Settings(Repeated):
    """Settings of the report."""

    texts: int = option(reference.MEASURED, "chunks to speak, of six", least=reference.MEASURED, most=len(CHUNKS))
    tokens: int = option(125, "a synthetic model stops after about this many for 90 characters", least=8)
    voice_runs: int = option(reference.VOICE_RUNS, "fresh processes of voice encoding, of each side", least=1)
    voice_seconds: float = option(10.0, "of the recordings", least=1, most=600)
    batch: bool = option(True, "leave generate_batch out")
    call: bool = option(True, "leave the first call of fresh processes out")
    soak_calls: int = option(36, "further calls for the stability table, in rounds of 12; 0 for none", least=0)


def run(source: str, settings: Settings) -> ReportResult:
    """Measures; ``source`` is that of :func:`tts_compile.bench.models.load`.

    Raises:
        InputError: for fewer than three texts, or more than there are.
    """
    s = settings
    if not reference.MEASURED <= s.texts <= len(CHUNKS):
        raise InputError(f"texts must be from {reference.MEASURED} to {len(CHUNKS)}, got {s.texts}")
    common = {"device": s.device, "seed": s.seed}
    fresh = startup.LoadSettings(repeats=s.repeats, call=s.call, **common)
    spoken = synthesis.Settings(repeats=s.repeats, texts=CHUNKS[: s.texts], batch=s.batch, **common)
    voices = voice.Settings(repeats=s.voice_runs, seconds=s.voice_seconds, **common)
    calls = soak.Settings(calls=s.soak_calls, **common)
    spent: dict[str, float] = {}

    @contextlib.contextmanager
    def part(name: str) -> Iterator[None]:
        with Stopwatch() as watch:
            yield
        spent[name] = watch.seconds

    with (
        tempfile.TemporaryDirectory(prefix="tts-compile-report-", ignore_cleanup_errors=True) as name,
        Progress() as progress,
    ):
        folder = Path(name)
        with part("loading"):  # first, with the voice, while this process holds no model itself
            loaded = startup.run_load(source, fresh, progress)
        with part("voice encoding"):
            encoded = voice.run(source, voices, progress)
        progress("loading")
        tts = load(source, s.device)
        with compile_model(tts, CompileConfig.from_env().replace(cache_dir=str(folder / "cache"))) as fast:
            with part("text generation, its warm-up included"):
                generated = synthesis.measure(Compiled(fast, 0.0, progress), spoken)
            steady = None
            with part("stability"):
                if s.soak_calls:
                    steady = soak.measure(fast, calls, folder, progress)
            return ReportResult(
                settings=s,
                loading=loaded,
                generation=generated,
                voice=encoded,
                soak=steady,
                spent=spent,
                model=generated.model,
                config=generated.config,
                report=fast.report().to_dict(),
            )
