"""Compares a compiled model with stock: components on recorded calls of stock, one by one, then whole utterances."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..attachment import Attachment
from ..audio.reading import resample
from ..audio.synthetic_voice import make_reference_wav
from ..components.component import Component, EagerComponent, StockComponent
from ..components.seam import own_method
from ..components.t3 import T3Component
from ..fallback import reason
from ..utils.random_state import generators_kept
from . import metrics
from .recorded_calls import Call, CallResult, methods_of, recorded
from .report import ComponentParity, ParityReport, TensorParity, TokenParity, WaveParity
from .thresholds import Thresholds
from .transcription import NO_WORDS, Transcriber, Words

TEXTS = (
    "Yes.",
    "The rain had stopped by noon, and nobody asked why.",
    "It was late; the lamps were lit one by one, and the street grew quiet, save for a dog that barked at nothing.",
)
_ENCODER_RATE = 16_000  # Hz, of the voice encoder
_TOKENS = "result"  # position of T3's tokens in its result


def measure(
    attachment: Attachment,
    texts: Sequence[str] = TEXTS,
    *,
    seed: int = 0,
    recording: str | Path | None = None,
    words: Words = NO_WORDS,
    step: Callable[[str], object] = lambda _: None,
) -> ParityReport:
    """Compares components one by one, on stock's calls of the methods that they replace, then whole utterances.

    The voice and the global generators are left unchanged.

    Args:
        attachment: of the compiled model.
        texts: the texts; a voice converter converts the recording instead.
        seed: of the first text; the next texts count up.
        recording: of a voice, for the components that read one; None makes one.
        words: the transcriber, so that words are compared too.
        step: called with the name of each step.
    """
    tts, family = attachment.tts, attachment.family
    components = {name: attachment.components[name] for name in attachment.components}
    methods = methods_of(components)
    thresholds = {name: Thresholds.of(component.dtype) for name, component in components.items()}
    of_waves = Thresholds.loosest(thresholds[name] for name in methods)  # errors of one component reach the wave
    found = {}
    spoken = []
    with inputs(attachment, texts, recording) as (said, path):
        with attachment.suspended():
            with recorded(tts, family, methods) as calls:
                step("stock: the voice")
                family.voice.prepare(tts, path)
                waves = []
                for number, text in enumerate(said):
                    step(f"stock: text {number + 1} of {len(said)}")
                    torch.manual_seed(seed + number)
                    waves.append(tts.generate(text))
            for name in methods:
                step(f"{name}: the same calls")
                mine = [call for call in calls if call.component == name]
                with family.voice.kept(tts):  # reading a recording again sets its voice
                    found[name] = compare(components[name], mine, thresholds[name])
        for number, (text, wave) in enumerate(zip(said, waves)):
            step(f"compiled: text {number + 1} of {len(said)}")
            torch.manual_seed(seed + number)
            spoken.append(compare_generate(attachment, text, wave, of_waves, words.transcribe))
    notes = [] if methods else ["no component has replaced anything: there is nothing to compare"]
    left_to_stock = {
        name: part for name, part in components.items() if name not in methods and part.report().asked != "stock"
    }
    given_up = {
        name: part.fallback.events[0].error
        for name, part in left_to_stock.items()
        if isinstance(part, StockComponent) and part.fallback.events
    }
    return ParityReport(
        components=found,
        waves=tuple(spoken),
        thresholds={**thresholds, "wave": of_waves},
        notes=tuple(filter(None, [*notes, words.note])),
        left_to_stock=tuple(left_to_stock),
        given_up=given_up,
    )


@contextlib.contextmanager
def inputs(
    attachment: Attachment, texts: Sequence[str], recording: str | Path | None = None
) -> Iterator[tuple[list[str], str]]:
    """Keeps voice and random generators of a model; yields the inputs of ``generate`` and the path of a recording."""
    tts, family = attachment.tts, attachment.family
    with (
        tempfile.TemporaryDirectory(prefix="tts-compile-parity-") as folder,
        generators_kept(family.device(tts)),
        family.voice.kept(tts),
    ):
        path = str(recording or make_reference_wav(Path(folder) / "voice.wav", seconds=5))
        yield [path] if family.speech is None else [str(text) for text in texts], path


def compare(component: Component, calls: Sequence[Call], thresholds: Thresholds) -> ComponentParity:
    """Compares one component with stock; attached alone, so that its result does not depend on other components.

    Args:
        component: not attached.
        calls: recorded calls of the methods that it replaces.
        thresholds: the limits for it.
    """
    logits: list[Tensor] = []
    if isinstance(component, EagerComponent):
        component.release()  # a kept result would be returned in place of a new one
    tensors: list[TensorParity] = []
    tokens: list[TokenParity] = []
    failures: list[str] = []
    notes: list[str] = []
    generators = True
    by_stock = 0
    try:
        if isinstance(component, T3Component):
            component.engine.listener = logits.append
        component.attach()
        for call in calls:
            logits.clear()
            before = component.stock_calls
            try:
                result = call.repeat_and_record(logits)
                generators &= result.after.same_as(call.result.after)
                found = _tensors(call, result)
                if call.component == "t3":
                    token, guided = _tokens(call, result)
                    tokens.append(token)
                    found += guided
                    if not guided:
                        notes.append("its logits could not be read; its tokens were compared")
                tensors += found
            except Exception as error:  # any error: stock raised none
                failures.append(f"{call.method} raised {reason(error)}")
            by_stock += component.stock_calls > before
    finally:
        component.detach()
        if isinstance(component, T3Component):
            component.engine.listener = None
    failures += [failure for tensor in tensors if (failure := _tensor_failure(tensor, thresholds))]
    failures += [
        f"{token.same:.1%} of the tokens are stock's, at least {thresholds.tokens:.0%} are wanted"
        for token in tokens
        if token.same < thresholds.tokens
    ]
    if thresholds.generators and not generators:
        failures.append("the random generators are not left as stock leaves them")
    if by_stock == len(calls):
        why = "stock has answered all calls in its place" if calls else "it was not reached"
        failures.append(f"{why}: nothing was compared")
    elif by_stock:
        notes.append(f"{by_stock} of {len(calls)} calls were answered by stock in its place")
    return ComponentParity(
        ran="stock" if by_stock == len(calls) else component.report().ran,
        calls=len(calls),
        stock_calls=by_stock,
        tensors=tuple(tensors),
        tokens=tuple(tokens),
        generators=generators,
        failures=tuple(failures),
        notes=tuple(dict.fromkeys(notes)),
    )


def _tensors(call: Call, result: CallResult) -> list[TensorParity]:
    """Compares all tensors but T3's tokens."""
    positions = sorted({*call.result.tensors, *result.tensors})
    if call.component == "t3":
        positions.remove(_TOKENS)
    stock, ours = call.result.tensors, result.tensors
    return [_tensor(f"{call.method} {position}", stock.get(position), ours.get(position)) for position in positions]


def _tokens(call: Call, result: CallResult) -> tuple[TokenParity, list[TensorParity]]:
    """Compares tokens, and the guided logits up to the first token that differs."""
    theirs, ours = call.result.tensors[_TOKENS][0].tolist(), result.tensors[_TOKENS][0].tolist()
    at = metrics.first_difference(theirs, ours)
    together = min(len(theirs), len(ours), len(theirs) if at is None else at + 1)
    gap = None
    stock = call.result.logits
    if at is not None and at < min(len(stock), len(theirs), len(ours)):
        gap = float(stock[at][theirs[at]] - stock[at][ours[at]])
    parity = TokenParity(len(ours), len(theirs), metrics.same_share(theirs, ours), at, gap)
    unreturned = max(0, len(stock) - len(theirs))  # a stop token that stock samples and does not return
    logits = result.logits[-(len(ours) + unreturned) :]  # those of a level that failed come first
    if min(len(logits), len(stock)) < together:  # stock answered, or a captured graph, whose logits are not read
        return parity, []
    pair = (torch.stack(list(side[:together])) for side in (stock, logits))
    return parity, [_tensor(f"{call.method} guided logits", *pair)]


def _tensor(name: str, stock: Tensor | None, found: Tensor | None) -> TensorParity:
    if stock is None or found is None:
        return TensorParity(name, None, False, "it is missing" if found is None else "stock gives none")
    whole = not stock.is_floating_point()
    for what in ("shape", "dtype", "device"):
        theirs, ours = getattr(stock, what), getattr(found, what)
        if theirs != ours:
            return TensorParity(name, None, whole, f"its {what} is {ours}, stock's {theirs}")
    return TensorParity(name, metrics.signal_to_error_db(stock, found), whole)


def _tensor_failure(tensor: TensorParity, thresholds: Thresholds) -> str | None:
    ratio = tensor.signal_to_error_db
    if ratio is None:
        return f"{tensor.name}: {tensor.unlike}"
    least = math.inf if tensor.whole else thresholds.signal_to_error_db
    if ratio >= least:  # never true of nan
        return None
    wanted = "equality is" if tensor.whole else f"at least {least:g} dB are"
    return f"{tensor.name}: {ratio:.1f} dB of signal to error, {wanted} wanted"


def compare_generate(
    attachment: Attachment, text: str, stock: Tensor, thresholds: Thresholds, transcribe: Transcriber | None = None
) -> WaveParity:
    """Generates a text with the components that are attached now, and compares the wave with stock's."""
    try:
        wave = attachment.tts.generate(text)
    except Exception as error:  # any error: stock raised none
        return WaveParity(text, None, None, None, None, None, (f"raised {reason(error)}",))
    return compare_waves(attachment, stock, wave, text, thresholds, transcribe)


def compare_waves(
    attachment: Attachment, stock: Tensor, wave: Tensor, text: str, limits: Thresholds, transcribe: Transcriber | None
) -> WaveParity:
    """Compares two waves (1, samples) of a text."""
    tts = attachment.tts
    ratio = metrics.signal_to_error_db(stock, wave)
    distance = metrics.log_mel_distance_db(stock, wave, tts.sr) if ratio is not None else None
    loudness = metrics.loudness_difference(stock, wave, tts.sr)
    similarity = _similarity(attachment, stock, wave)
    rates = None
    if transcribe is not None:
        theirs, ours = (metrics.word_error_rate(text, transcribe(side, tts.sr)) for side in (stock, wave))
        rates = theirs, ours
    failures = []
    if limits.wave_db is not None and not (ratio is not None and ratio >= limits.wave_db):
        found = "another shape than stock's" if ratio is None else f"{ratio:.1f} dB of signal to error"
        failures.append(f"{found}, at least {limits.wave_db:g} dB are wanted")
    longer = wave.shape[-1] / max(stock.shape[-1], 1) - 1
    if not abs(longer) <= limits.length:
        failures.append(f"{longer:+.1%} in length, at most {limits.length:.0%} is wanted")
    if distance is not None and limits.log_mel_db is not None and not distance <= limits.log_mel_db:
        failures.append(f"log-mel distance {distance:.2f} dB, at most {limits.log_mel_db:g} is wanted")
    if loudness is not None and not abs(loudness) <= limits.loudness_lu:
        failures.append(f"{loudness:+.2f} LU in loudness, at most {limits.loudness_lu:g} is wanted")
    if similarity is not None and not similarity >= limits.speaker_similarity:
        failures.append(f"speaker similarity {similarity:.4f}, at least {limits.speaker_similarity:g} is wanted")
    if rates is not None and not rates[1] - rates[0] <= limits.words:
        failures.append(f"{rates[1]:.1%} of the words misheard, {rates[0]:.1%} of stock's")
    return WaveParity(text, ratio, distance, loudness, similarity, rates, tuple(failures))


def _similarity(attachment: Attachment, stock: Tensor, wave: Tensor) -> float | None:
    """Returns the cosine of the embeddings that the model's own voice encoder computes from two waves."""
    tts, family = attachment.tts, attachment.family
    if family.voice_encoder is None:
        return None
    if not (torch.isfinite(stock).all() and torch.isfinite(wave).all()):
        return math.nan
    embed = own_method(getattr(tts, family.voice_encoder), "embeds_from_wavs")

    def voice(side: Tensor) -> Tensor:
        samples = resample(side[0].detach().cpu().numpy().astype(np.float32), tts.sr, _ENCODER_RATE)
        return torch.from_numpy(embed([samples], sample_rate=_ENCODER_RATE)[0])

    return float(torch.nn.functional.cosine_similarity(voice(stock), voice(wave), dim=0))
