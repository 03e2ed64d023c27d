"""Flow, vocoder, or the whole ``generate``, stock against compiled: alternating, on one model, with equal seeds."""

from __future__ import annotations

import contextlib
import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..api import compile_model
from ..audio.reading import digest
from ..config import CompileConfig
from ..handle import CompiledTTS
from ..measuring import interleaved, stats
from ..measuring.interleaved import same_states, timed_call
from ..measuring.progress import Progress, Step
from ..measuring.proof import SPEAKING
from ..measuring.stats import Ratio, median_of, ratio_of_medians, spread, yes
from ..parity.metrics import lowest_db
from ..sample_text import TEXT, prose
from . import processes, stages
from .models import compile_cache, describe, load, new_graphs, only
from .plots import Lines, Plot, Ratios
from .result import INTERVAL, LEAST_DB, Repeated, Result, Row, Section, decibels, option, ran, sums
from .stages import STAGES, Watched, by_stage, watched

SIDES = ("stock", "compiled")
_LENGTHS = [4 + 13 * i for i in range(20)]  # speech tokens
_FRAMES_PER_TOKEN = 2
_TOKENS_PER_SECOND = 25
_SOLVER_STEPS = 10
_TITLES = {"flow": "Flow", "vocoder": "Vocoder", "e2e": "The whole generate"}


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
    memory: bool = option(True, "leave out the memory of two fresh processes")
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
        stages: seconds in each stage, a value per repeat; empty for flow and vocoder.
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
class SynthesisResult(Result):
    """The figures of flow, vocoder or ``generate``.

    Attributes:
        stock, compiled: by text.
        batch: seconds of all texts together by ``generate_batch``, a value per repeat; empty where not measured.
        reference_seconds: of the voice.
        signal_to_error_db: the lowest of all pairs, of mel frames (flow) or waves; None where shapes differ.
        generator_identical: after every pair of calls.
        tokens_identical: texts whose speech tokens equal stock's in every repeat; None where there are no tokens.
        first_call_seconds: ``compile_model`` and the first call, with an empty compile cache.
        warmup_seconds: :meth:`CompiledTTS.warmup` after it.
        later_graphs: compiled or captured after the warm-up, also for 20 other lengths (flow and vocoder).
        peaks: peak memory in bytes of fresh processes by side, None where not measured.
    """

    stock: list[Spoken]
    compiled: list[Spoken]
    batch: list[float] = field(default_factory=list)
    reference_seconds: float
    signal_to_error_db: float | None
    generator_identical: bool
    tokens_identical: int | None
    first_call_seconds: float
    warmup_seconds: float
    later_graphs: int
    peaks: dict[str, dict[str, Any]] | None = None

    @property
    def subject(self) -> str:
        """Returns ``"flow"``, ``"vocoder"`` or ``"e2e"``."""
        return str(self.settings.subject)

    @property
    def called(self) -> tuple[str, ...]:
        """Returns the components that the subject calls."""
        return SPEAKING if self.subject == "e2e" else (self.subject,)

    @property
    def texts(self) -> tuple[str, ...]:
        """Returns the texts; one without a name for flow and vocoder."""
        return self.settings.spoken if self.subject == "e2e" else ("",)

    @property
    def title(self) -> str:
        """Returns the page's title."""
        return _TITLES[self.subject] + ", by length of text" * (len(self.texts) > 1)

    @property
    def compile_seconds(self) -> float:
        """Returns what the first call costs beyond a later one."""
        return self.first_call_seconds - statistics.median(self.compiled[0].seconds)

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
        alike = self.signal_to_error_db is not None and self.signal_to_error_db >= LEAST_DB
        tokens = self.tokens_identical in (None, len(self.texts))
        return alike and tokens and self.generator_identical and self.repeated and not self.later_graphs

    def total(self, side: str) -> list[float]:
        """Returns the seconds of all texts, a value per repeat; ``"batch"`` is a side too."""
        return self.batch if side == "batch" else sums(text.seconds for text in getattr(self, side))

    def factors(self, side: str) -> list[float]:
        """Returns seconds of work for a second of speech over all texts, a value per repeat."""
        return [seconds / self.audio_seconds for seconds in self.total(side)]

    def stages(self, side: str) -> dict[str, list[float]]:
        """Returns the seconds in each stage over all texts, a value per repeat."""
        return {stage: sums(text.stages[stage] for text in getattr(self, side)) for stage in STAGES}

    @property
    def gain(self) -> Ratio:
        """Returns how many times faster the compiled side is over all texts."""
        return ratio_of_medians(self.total("stock"), self.total("compiled"), seed=self.settings.seed)

    @property
    def stage_gains(self) -> dict[str, Ratio]:
        """Returns how many times faster each stage is over all texts; empty for flow and vocoder."""
        if self.subject != "e2e":
            return {}
        return stages.gains(self.stages("stock"), self.stages("compiled"), self.settings.seed)

    @property
    def gains(self) -> dict[str, Ratio]:
        """Returns how many times faster the compiled side is, by text and in all."""
        ratio = functools.partial(ratio_of_medians, seed=self.settings.seed)
        if len(self.texts) == 1 and not self.batch:
            return {self.title: self.gain}
        texts = enumerate(zip(self.texts, self.stock, self.compiled), 1)
        found = {f"text {n}, {len(t)} characters": ratio(a.seconds, b.seconds) for n, (t, a, b) in texts}
        found["all texts"] = self.gain
        if self.batch:
            found["all texts as a batch"] = ratio(self.total("stock"), self.batch)
        return found

    def follows(self) -> dict[str, Any]:
        """Returns plain values that follow; for a single text, its seconds and stages stand without a list."""
        plain: dict[str, Any] = {
            "gain": self.gain.to_dict(),
            "gains": stats.plain(self.gains | self.stage_gains),
            "compile_seconds": self.compile_seconds,
            "audio_seconds": self.audio_seconds,
        }
        if self.subject == "e2e":
            sides = (*SIDES, *["batch"] * bool(self.batch))
            plain["real_time_factors"] = {side: asdict(median_of(self.factors(side))) for side in sides}
            plain["stages"] = {side: self.stages(side) for side in SIDES}
        if len(self.texts) == 1:
            plain |= {side: self.total(side) for side in SIDES}
            plain["tokens_identical"] = None if self.tokens_identical is None else self.tokens_identical == 1
        return plain

    def sections(self) -> list[Section]:
        """Returns a table of seconds or, for several texts, of work for a second of speech; and the proof."""
        model = self.model
        about = (
            f"T3 {model['t3_parameters'] / 1e6:.0f} M, S3Gen {model['s3gen_parameters'] / 1e6:.0f} M parameters, "
            f"{self.reference_seconds:.0f} s reference, {self.about}; {ran(self.report)}"
        )
        if len(self.texts) > 1:
            stage_rows = [("seconds in each stage, all texts", *SIDES, f"gain {INTERVAL}"), *self.stage_rows()]
            return [Section(self._factor_rows(), self.few), Section(stage_rows, [self.proof, about])]
        what = {"flow": "tokens to mel", "vocoder": "mel to wave", "e2e": "text to wave"}[self.subject]
        title = f"{what}, {self.audio_seconds:.2f} s of speech, median {INTERVAL}"
        rows: list[Row] = [
            (title, *SIDES, f"gain {INTERVAL}"),
            ("seconds", *(spread(self.total(side)) for side in SIDES), self.gain),
            *self.stage_rows(),
            *processes.peak_rows(self.peaks),
            ("first call's extra, cold, s", "", f"{self.compile_seconds:.1f}", ""),
        ]
        return [Section(rows, [*self.few, self.proof, about])]

    def stage_rows(self) -> list[Row]:
        """Returns a table's rows of the stages over all texts; empty for flow and vocoder."""
        if self.subject != "e2e":
            return []
        return stages.rows(self.stages("stock"), self.stages("compiled"), self.settings.seed)

    def _factor_rows(self) -> list[Row]:
        rows: list[Row] = [(f"work for a second of speech, median {INTERVAL}", *SIDES, f"gain {INTERVAL}")]
        for (name, gain), stock, compiled in zip(self.gains.items(), self.stock, self.compiled):
            what = f"{name}, {compiled.audio_seconds:.1f} s of speech"
            rows.append((what, spread(stock.factors), spread(compiled.factors), gain))
        rows.append(("all texts", *(spread(self.factors(side)) for side in SIDES), self.gain))
        if self.batch:
            gain = self.gains["all texts as a batch"]
            rows.append(("all texts as a batch", "", spread(self.factors("batch")), gain))
        return rows

    @property
    def proof(self) -> str:
        """Returns the line that says whether both sides did the same."""
        tokens = self.tokens_identical
        spoken = "" if tokens is None else f"tokens identical: {tokens} of {len(self.texts)}; "
        lengths = f", {len(_LENGTHS)} other lengths included" if self.subject != "e2e" else ""
        return (
            f"{self.settings.repeats} repeats; {spoken}generator state identical: {yes(self.generator_identical)}; "
            f"least signal to error: {decibels(self.signal_to_error_db)}; repeated calls bit for bit: "
            f"{yes(self.repeated)}; graphs after the warm-up{lengths}: {self.later_graphs}; "
            f"all as stock: {yes(self.passed)}"
        )

    def plots(self) -> list[Plot]:
        """Returns ratios; for ``generate``, stages; for several texts, real-time factors."""
        found: list[Plot] = [Ratios("How many times faster than stock", self.gains | self.stage_gains)]
        if self.subject == "e2e":
            found.insert(0, stages.plot("Time by stage", {side: self.stages(side) for side in SIDES}))
        if len(self.texts) > 1:
            lines = {
                side: [(len(text), median_of(spoken.factors)) for text, spoken in zip(self.texts, getattr(self, side))]
                for side in SIDES
            }
            found.append(Lines("Work for a second of speech", "characters of the text", "real-time factor", lines))
        return found


@dataclass
class Made:
    """The result of one call.

    Attributes:
        audio: mel frames or a wave, on the CPU; several waves for a batch.
        watched: seconds by stage and speech tokens, where the call is ``generate``.
    """

    audio: list[Tensor]
    watched: Watched | None = None

    @property
    def tokens(self) -> list[list[int]]:
        """Returns the speech tokens, if any."""
        return self.watched.tokens if self.watched else []


@dataclass
class Work:
    """The calls of one subject.

    Attributes:
        calls: one for each text; each takes the name of a side.
        rate: frames or samples a second.
        vary: makes calls of other lengths on the compiled side.
        together: speaks all texts as a batch, where that is measured.
    """

    calls: Sequence[Callable[[str], Made]]
    rate: float
    vary: Callable[[], None] = lambda: None
    together: Callable[[], Made] | None = None


def run(source: str, settings: Settings | FlowSettings) -> SynthesisResult:
    """Measures; ``source`` is that of :func:`tts_compile.bench.models.load`."""
    s = settings
    with compile_cache() as cache_dir, Progress() as progress:
        progress("loading")
        tts = load(source, s.device)
        config = CompileConfig.from_env().replace(cache_dir=cache_dir)
        if s.subject != "e2e":
            config = only(s.subject, config)
        fast, attach_seconds = timed_call(s.device, functools.partial(compile_model, tts, config))
        with fast:
            result = measure(fast, s, progress, attach_seconds)
        del tts, fast
        if not getattr(s, "memory", False) or len(result.texts) > 1:
            return result
        progress("memory of fresh processes")
        wanted = processes.Wanted(s.device, None, result.texts[0], s.seed, cache_dir)
        return replace(result, peaks=processes.peaks(source, wanted))


def measure(fast: CompiledTTS, settings: Any, step: Step, attach_seconds: float = 0.0) -> SynthesisResult:
    """Measures a compiled model, which is warmed up after the first call."""
    s, work = settings, _WORK[settings.subject](fast, settings)
    step("first calls")
    work.calls[0]("stock")  # not timed: reads the weights into memory and sets up libraries for both sides
    first_call = interleaved.call(functools.partial(work.calls[0], "compiled"), s.device, s.seed)
    step("warm-up")
    warmup = fast.warmup()
    if work.together:
        work.together()
    later_graphs = new_graphs(fast)
    sides: dict[str, Callable[[], Made]] = {
        f"{side} {n}": functools.partial(call, side) for n, call in enumerate(work.calls) for side in SIDES
    }
    if work.together:
        sides["batch"] = work.together
    done = interleaved.alternate(sides, s.repeats, step, device=s.device, seed=s.seed)
    calls = {side: [done[f"{side} {n}"] for n in range(len(work.calls))] for side in SIDES}
    pairs = list(zip(calls["stock"], calls["compiled"]))
    audio = [(a.result.audio[0], b.result.audio[0]) for both in pairs for a, b in zip(*both)]
    for repeat, batch in enumerate(done.get("batch", [])):
        audio += [(text[repeat].result.audio[0], wave) for text, wave in zip(calls["stock"], batch.result.audio)]
    tokens = [[call.result.tokens for side in both for call in side] for both in pairs]
    step("other lengths")
    work.vary()
    return SynthesisResult(
        settings=s,
        model=describe(fast.wrapped),
        config=fast.config.replace(cache_dir=None).to_dict(),  # it was a temporary one
        stock=[_spoken(text, work.rate) for text in calls["stock"]],
        compiled=[_spoken(text, work.rate) for text in calls["compiled"]],
        batch=interleaved.seconds(done.get("batch", [])),
        reference_seconds=fast.conds.gen["prompt_feat"].shape[1] / (_TOKENS_PER_SECOND * _FRAMES_PER_TOKEN),
        signal_to_error_db=lowest_db(audio),
        generator_identical=all(same_states(*both) for both in pairs),
        tokens_identical=sum(all(t == text[0] for t in text) for text in tokens) if any(map(any, tokens)) else None,
        first_call_seconds=attach_seconds + first_call.seconds,
        warmup_seconds=warmup.total,
        later_graphs=later_graphs(),
        report=fast.report().to_dict(),
    )


def _spoken(calls: list[interleaved.Call[Made]], rate: float) -> Spoken:
    audio = [call.result.audio[0] for call in calls]
    digests = [digest(made.numpy()) for made in audio]
    seconds = interleaved.seconds(calls)
    splits = [call.result.watched.seconds for call in calls if call.result.watched]
    return Spoken(
        seconds=seconds,
        audio_seconds=audio[0].shape[-1] / rate,
        identical=sum(later == digests[0] for later in digests[1:]),
        stages=by_stage(splits, seconds) if splits else {},
    )


def _inference(module: Any) -> dict[str, Callable[..., Any]]:
    return {"stock": functools.partial(type(module).inference, module), "compiled": module.inference}


def _flow(fast: CompiledTTS, settings: FlowSettings) -> Work:
    s3gen, voice, device = fast.wrapped.s3gen, fast.conds.gen, fast.device
    inference = _inference(s3gen.flow)

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
    inference = _inference(fast.wrapped.s3gen.mel2wav)
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
        with fast.stock() if stock else contextlib.nullcontext(fast) as model, watched(fast.wrapped) as found:
            return Made([model.generate(text)], found)

    def together() -> Made:
        waves = fast.generate_batch(texts, [settings.seed] * len(texts))
        return Made([wave for wave in waves if wave is not None])

    calls = [functools.partial(speak, text) for text in texts]
    return Work(calls, fast.sr, together=together if settings.batch else None)


_WORK: Mapping[str, Callable[[CompiledTTS, Any], Work]] = {"flow": _flow, "vocoder": _vocoder, "e2e": _e2e}
