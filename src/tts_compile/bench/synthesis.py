"""Flow, vocoder, or the whole ``generate``, stock against compiled: alternating, on one model, with equal seeds."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, ClassVar

import torch

from ..audio.reading import digest
from ..handle import CompiledTTS
from ..measuring import stats
from ..measuring.interleaved import Call, seconds
from ..measuring.stats import median_of, yes
from ..parity.metrics import lowest_db
from ..sample_text import TEXT, prose
from . import pairs
from .models import Compiled, compiled_model
from .pairs import PairResult, Work
from .plots import Lines, Plot, Stages
from .result import LEAST_DB, SIDES, Repeated, decibels, option, sums
from .stages import STAGES, Made, watched

_LENGTHS = [4 + 13 * i for i in range(20)]  # speech tokens
_FRAMES_PER_TOKEN = 2
_TOKENS_PER_SECOND = 25
_SOLVER_STEPS = 10


@dataclass(frozen=True, kw_only=True)
class FlowSettings(Repeated):
    """Settings of the benchmark of the flow."""

    subject: str = "flow"
    tokens: int = option(125, "speech tokens, 25 a second", least=8)


@dataclass(frozen=True, kw_only=True)
class VocoderSettings(FlowSettings):
    """Settings of the benchmark of the vocoder."""

    subject: str = "vocoder"


@dataclass(frozen=True, kw_only=True)
class Settings(Repeated):
    """Settings of the benchmark of the whole ``generate``.

    Attributes:
        texts: each one is spoken alone; in place of ``text`` and ``lengths``.
        batch: whether ``generate_batch`` speaks all texts together too.
    """

    subject: str = "e2e"
    tokens: int = option(125, "a synthetic model stops after about this many for 90 characters", least=8)
    text: str = option(TEXT, "the text to speak")
    lengths: tuple[int, ...] = option((), "speak texts of these numbers of characters instead", least=1)
    texts: tuple[str, ...] = ()
    batch: bool = False

    @property
    def spoken(self) -> tuple[str, ...]:
        """Returns the texts."""
        return self.texts or tuple(map(prose, self.lengths)) or (self.text,)


@dataclass
class Spoken:
    """One text, or one input of the flow or the vocoder, on one side.

    Attributes:
        seconds: of the whole call, a value per repeat.
        audio_seconds: of the result.
        identical: results of later repeats that equal the first one bit for bit.
        stages: seconds in each stage, a value per repeat; for flow and vocoder, all in the rest.
    """

    seconds: list[float]
    audio_seconds: float
    identical: int
    stages: dict[str, list[float]] = field(default_factory=dict)

    @property
    def factors(self) -> list[float]:
        """Returns real-time factors: seconds of work for a second of speech."""
        return [seconds / self.audio_seconds for seconds in self.seconds]


@dataclass(frozen=True, kw_only=True)
class SynthesisResult(PairResult):
    """The figures of calls that return audio.

    Attributes:
        makes: what the calls do, in words.
        stock, compiled: by text; a single one for flow and vocoder.
        reference_seconds: of the voice.
        signal_to_error_db: the lowest of all pairs, of mel frames (flow) or waves; None where shapes differ.
    """

    makes: ClassVar[str]

    stock: list[Spoken]
    compiled: list[Spoken]
    reference_seconds: float
    signal_to_error_db: float | None

    @property
    def audio_seconds(self) -> float:
        """Returns the seconds of all results together."""
        return sum(text.audio_seconds for text in self.compiled)

    @property
    def repeated(self) -> bool:
        """Returns whether the compiled side's repeats equal one another bit for bit."""
        return all(text.identical == self.settings.repeats - 1 for text in self.compiled)

    @property
    def kept(self) -> bool:
        """Returns whether the compiled side did what stock does, each time."""
        ratio = self.signal_to_error_db
        return super().kept and self.repeated and ratio is not None and ratio >= LEAST_DB

    def total(self, side: str) -> list[float]:
        """Returns the seconds of all texts, a value per repeat."""
        return sums(text.seconds for text in getattr(self, side))

    @property
    def heading(self) -> str:
        """Returns what the calls do, and how much of it."""
        return f"{self.makes}, {self.audio_seconds:.2f} s of speech"

    @property
    def values(self) -> dict[str, Sequence[Sequence[float]]]:
        """Returns the seconds."""
        return {"seconds": [self.total(side) for side in SIDES]}

    @property
    def checks(self) -> dict[str, str]:
        """Returns what was compared and counted, in words."""
        return super().checks | {
            "least signal to error": decibels(self.signal_to_error_db),
            "repeated calls bit for bit": yes(self.repeated),
        }

    def follows(self) -> dict[str, Any]:
        """Returns plain values that follow; for a single text, its seconds stand without a list."""
        gains = stats.plain(self.gains)
        plain: dict[str, Any] = {"gains": gains, "gain": gains["seconds"], "audio_seconds": self.audio_seconds}
        if self.inputs == 1:
            plain |= {side: self.total(side) for side in SIDES}
            plain["tokens_identical"] = None if self.tokens_identical is None else self.tokens_identical == 1
        return plain


class FlowResult(SynthesisResult):
    """The figures of the flow."""

    subject, title, called = "flow", "Flow", ("flow",)
    makes = "tokens to mel"
    varied = f", {len(_LENGTHS)} other lengths included"


class VocoderResult(SynthesisResult):
    """The figures of the vocoder."""

    subject, title, called = "vocoder", "Vocoder", ("vocoder",)
    makes = "mel to wave"
    varied = FlowResult.varied


@dataclass(frozen=True, kw_only=True)
class SpeechResult(SynthesisResult):
    """The figures of ``generate``, by text and by stage.

    Attributes:
        batch: seconds of all texts together by ``generate_batch``, a value per repeat; empty where not measured.
    """

    subject, title = "e2e", "The whole generate"
    makes = "text to wave"
    titles: ClassVar[Mapping[str, str]] = {stage: f"in {stage}, s" for stage in STAGES}
    without_gain = ("rest",)

    batch: list[float] = field(default_factory=list)

    def total(self, side: str) -> list[float]:
        """Returns the seconds of all texts, a value per repeat; ``"batch"`` is a side too."""
        return self.batch if side == "batch" else super().total(side)

    def factors(self, side: str) -> list[float]:
        """Returns seconds of work for a second of speech over all texts, a value per repeat."""
        return [seconds / self.audio_seconds for seconds in self.total(side)]

    def stages(self, side: str) -> dict[str, list[float]]:
        """Returns the seconds in each stage over all texts, a value per repeat."""
        return {stage: sums(text.stages[stage] for text in getattr(self, side)) for stage in STAGES}

    @property
    def texts(self) -> tuple[str, ...]:
        """Returns the texts."""
        return tuple(self.settings.spoken)

    @property
    def values(self) -> dict[str, Sequence[Sequence[float]]]:
        """Returns seconds, those for a second of speech, also by text, and those in each stage."""
        found = super().values | {"for a second of speech, s": [self.factors(side) for side in SIDES]}
        if self.inputs > 1:
            for n, (text, *sides) in enumerate(zip(self.texts, self.stock, self.compiled), 1):
                found[f"the same, text {n}, {len(text)} characters"] = [spoken.factors for spoken in sides]
        if self.batch:
            found["the same, all texts as a batch"] = [self.factors("stock"), self.factors("batch")]
        return found | self.stage_values

    @property
    def stage_values(self) -> dict[str, Sequence[Sequence[float]]]:
        """Returns the seconds of both sides in each stage that takes time."""
        stock, compiled = map(self.stages, SIDES)
        return {stage: [stock[stage], compiled[stage]] for stage in STAGES if min(compiled[stage]) > 0}

    def follows(self) -> dict[str, Any]:
        """Returns plain values that follow from the raw ones."""
        sides = (*SIDES, *["batch"] * bool(self.batch))
        return super().follows() | {
            "real_time_factors": {side: asdict(median_of(self.factors(side))) for side in sides},
            "stages": {side: self.stages(side) for side in SIDES},
        }

    def plots(self) -> list[Plot]:
        """Returns stages and ratios; for several texts, real-time factors."""
        medians = {side: {stage: median(seconds) for stage, seconds in self.stages(side).items()} for side in SIDES}
        found: list[Plot] = [Stages("Time by stage", medians), *super().plots()]
        if self.inputs > 1:
            lines = {
                side: [(len(text), median_of(spoken.factors)) for text, spoken in zip(self.texts, getattr(self, side))]
                for side in SIDES
            }
            found.append(Lines("Work for a second of speech", "characters of the text", "real-time factor", lines))
        return found


def run(source: str, settings: Any) -> SynthesisResult:
    """Measures; ``source`` is that of :func:`tts_compile.bench.models.load`."""
    component = None if settings.subject == "e2e" else settings.subject
    with compiled_model(source, settings.device, component) as model:
        return measure(model, settings)


def measure(model: Compiled, settings: Any) -> SynthesisResult:
    """Measures a compiled model, which is warmed up after the first call."""
    fast = model.fast
    work = _WORK[settings.subject](fast, settings)
    done = pairs.call_in_turn(model, settings, work)
    stock, compiled = done.sides.values()
    audio = [(a.result.audio[0], b.result.audio[0]) for sides in zip(stock, compiled) for a, b in zip(*sides)]
    for repeat, batch in enumerate(done.batch):
        audio += [(text[repeat].result.audio[0], wave) for text, wave in zip(stock, batch.result.audio)]
    figures = done.figures | ({"batch": seconds(done.batch)} if done.batch else {})
    return _RESULTS[settings.subject](
        **figures,
        stock=[_spoken(text, work.rate) for text in stock],
        compiled=[_spoken(text, work.rate) for text in compiled],
        reference_seconds=fast.conds.gen["prompt_feat"].shape[1] / (_TOKENS_PER_SECOND * _FRAMES_PER_TOKEN),
        signal_to_error_db=lowest_db(audio),
    )


def _spoken(calls: list[Call[Made]], rate: float) -> Spoken:
    first, *later = (digest(call.result.audio[0].numpy()) for call in calls)
    return Spoken(
        seconds=seconds(calls),
        audio_seconds=calls[0].result.audio[0].shape[-1] / rate,
        identical=later.count(first),
        stages={stage: [_in_stage(call, stage) for call in calls] for stage in STAGES},
    )


def _in_stage(call: Call[Made], stage: str) -> float:
    stages = call.result.seconds
    return call.seconds - sum(stages.values()) if stage == "rest" else stages[stage]


def _flow(fast: CompiledTTS, settings: FlowSettings) -> Work:
    s3gen, voice, device = fast.wrapped.s3gen, fast.conds.gen, fast.device
    inference = pairs.inference(s3gen.flow)

    def solve(side: str, count: int, steps: int) -> Made:
        generator = torch.Generator().manual_seed(settings.seed)
        token = torch.randint(0, s3gen.flow.vocab_size, (1, count), generator=generator).to(device)
        length = torch.tensor([count], device=device)
        with torch.inference_mode():
            mel, _ = inference[side](token=token, token_len=length, finalize=True, n_timesteps=steps, **voice)
        return Made([mel.cpu()])

    def vary() -> None:
        for count in _LENGTHS:
            solve("compiled", count, 1)  # one solver step has the shapes of ten

    return Work(
        [lambda side: solve(side, settings.tokens, _SOLVER_STEPS)], _TOKENS_PER_SECOND * _FRAMES_PER_TOKEN, vary
    )


def _vocoder(fast: CompiledTTS, settings: FlowSettings) -> Work:
    inference = pairs.inference(fast.wrapped.s3gen.mel2wav)
    prompt = fast.conds.gen["prompt_feat"].transpose(1, 2)

    def speak(side: str, tokens: int) -> Made:
        frames = tokens * _FRAMES_PER_TOKEN
        mel = prompt.repeat(1, 1, -(-frames // prompt.shape[2]))[..., :frames].contiguous()
        with torch.inference_mode():
            wave, _ = inference[side](speech_feat=mel, cache_source=torch.zeros(1, 1, 0, device=mel.device))
        return Made([wave.cpu()])

    def vary() -> None:
        for count in _LENGTHS:
            speak("compiled", count)

    return Work([lambda side: speak(side, settings.tokens)], fast.sr, vary)


def _e2e(fast: CompiledTTS, settings: Settings) -> Work:
    texts = settings.spoken

    def speak(text: str, side: str) -> Made:
        stock = side == "stock"
        with fast.stock() if stock else contextlib.nullcontext(fast) as model, watched(fast.wrapped) as made:
            made.audio.append(model.generate(text))
        return made

    def together() -> Made:
        waves = fast.generate_batch(texts, [settings.seed] * len(texts))
        return Made([wave for wave in waves if wave is not None])

    calls = [functools.partial(speak, text) for text in texts]
    return Work(calls, fast.sr, together=together if settings.batch else None)


_WORK: Mapping[str, Callable[[CompiledTTS, Any], Work]] = {"flow": _flow, "vocoder": _vocoder, "e2e": _e2e}
_RESULTS: Mapping[str, type[SynthesisResult]] = {"flow": FlowResult, "vocoder": VocoderResult, "e2e": SpeechResult}
