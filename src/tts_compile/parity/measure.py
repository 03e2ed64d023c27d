"""Stock speaks and is written down; components answer the same calls, one by one; then all speak together."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import testing
from ..audio.reading import resample
from ..components.component import Component, EagerComponent
from ..components.seam import own_method
from ..components.t3 import T3Component
from ..fallback import reason
from .metrics import (
    first_difference,
    log_mel_distance_db,
    loudness_difference,
    same_share,
    signal_to_error_db,
    word_error_rate,
)
from .recorded_calls import Call, Take, methods_of, recorded
from .report import ComponentParity, ParityReport, TensorParity, TokenParity, WaveParity
from .thresholds import Thresholds
from .voice import Voice

TEXTS = (
    "Yes.",
    "The rain had stopped by noon, and nobody asked why.",
    "It was late; the lamps were lit one by one, and the street grew quiet, save for a dog that barked at nothing.",
)
_ENCODER_RATE = 16_000  # Hz, of the voice encoder
_TOKENS = "result"  # where T3's stand in what it gives

Transcriber = Callable[[Tensor, int], str]  # of a wave (1, samples) at a rate in Hz


def measure(
    tts: Any,
    components: Mapping[str, Component],
    thresholds: Mapping[str, Thresholds],
    stock: Callable[[], AbstractContextManager[Any]],
    speak: Callable[[Any], Tensor],
    texts: Sequence[str] = TEXTS,
    *,
    seed: int = 0,
    recording: str | Path | None = None,
    transcribe: Transcriber | None = None,
    step: Callable[[str], object] = lambda _: None,
) -> ParityReport:
    """Compare components one by one, on what stock gave their methods, and then whole utterances.

    The voice and the global generators are left as they were.

    Args:
        tts: the model, compiled.
        components: its own; those that replace nothing are left out.
        thresholds: by component.
        stock: a block inside which the model is stock.
        speak: the compiled model's ``generate``.
        texts: what is spoken; a voice converter converts the recording instead.
        seed: of the first text; the next ones count up.
        recording: of a voice, for the components that read one; None makes one.
        transcribe: writes down what it hears, so that words are compared too.
        step: told what is being done.
    """
    device = next(tts.s3gen.parameters()).device
    methods = methods_of(components)
    voice = Voice(tts)
    with tempfile.TemporaryDirectory(prefix="tts-compile-parity-") as folder, torch.random.fork_rng(), voice.kept():
        path = str(recording or testing.make_reference_wav(Path(folder) / "voice.wav", seconds=5))
        said = [str(text) for text in texts]
        if not hasattr(tts, "t3"):
            said, transcribe = [path], None  # what the recording says is not known
        waves = []
        found = {}
        with stock():
            with recorded(methods, device, tts) as calls:
                step("stock: the voice")
                voice.prepare(path)
                for number, text in enumerate(said):
                    step(f"stock: text {number + 1} of {len(said)}")
                    torch.manual_seed(seed + number)
                    waves.append(tts.generate(text))
            for name in methods:
                step(f"{name}: the same calls")
                mine = [call for call in calls if call.component == name]
                with voice.kept():  # reading a recording again sets its voice
                    found[name] = compare(components[name], mine, thresholds[name])
        held_to = [thresholds[name] for name in methods]  # errors of one reach the wave
        loosest = min(held_to, key=lambda t: t.signal_to_error_db, default=Thresholds.exact())
        spoken = []
        for number, (text, wave) in enumerate(zip(said, waves)):
            step(f"compiled: text {number + 1} of {len(said)}")
            torch.manual_seed(seed + number)
            try:
                ours = speak(text)
            except Exception as error:  # of any kind: stock had none
                spoken.append(WaveParity(text, None, None, None, None, None, (f"raised {reason(error)}",)))
            else:
                spoken.append(_wave(tts, text, wave, ours, loosest, transcribe))
    notes = () if methods else ("no component has replaced anything: there is nothing to compare",)
    return ParityReport(found, tuple(spoken), {**thresholds, "wave": loosest}, notes)


def compare(component: Component, calls: Sequence[Call], thresholds: Thresholds) -> ComponentParity:
    """One component on stock's inputs; attached alone, so that what others do wrong is not laid at its door.

    Args:
        component: not attached.
        calls: of the methods that it replaces, and what stock gave.
        thresholds: that it is held to.
    """
    heard: list[Tensor] = []
    if isinstance(component, EagerComponent):
        component.release()  # what it remembers would answer for it
    tensors: list[TensorParity] = []
    tokens: list[TokenParity] = []
    failures: list[str] = []
    notes: list[str] = []
    generators = True
    by_stock = 0
    try:
        if isinstance(component, T3Component):
            component.engine.listener = heard.append
        component.attach()
        for call in calls:
            heard.clear()
            before = component.stock_calls
            try:
                take = call.played(heard)
                generators &= take.after.same_as(call.take.after)
                found = _tensors(call, take)
                if call.component == "t3":
                    token, logits = _tokens(call, take)
                    tokens.append(token)
                    found += logits
                    if not logits:
                        notes.append("its logits could not be heard; its tokens were compared")
                tensors += found
            except Exception as error:  # of any kind: stock had none
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
    ran = "stock" if by_stock == len(calls) else component.report().ran
    return ComponentParity(
        ran,
        len(calls),
        by_stock,
        tuple(tensors),
        tuple(tokens),
        generators,
        tuple(failures),
        tuple(dict.fromkeys(notes)),
    )


def _tensors(call: Call, take: Take) -> list[TensorParity]:
    """All but T3's tokens."""
    places = sorted({*call.take.tensors, *take.tensors})
    if call.component == "t3":
        places.remove(_TOKENS)
    return [_tensor(f"{call.method} {at}", call.take.tensors.get(at), take.tensors.get(at)) for at in places]


def _tokens(call: Call, take: Take) -> tuple[TokenParity, list[TensorParity]]:
    """Tokens, and the guided logits behind them as far as both sides went the same way."""
    theirs, ours = call.take.tensors[_TOKENS][0].tolist(), take.tensors[_TOKENS][0].tolist()
    at = first_difference(theirs, ours)
    together = min(len(theirs), len(ours), len(theirs) if at is None else at + 1)
    gap = None
    before = call.take.heard
    if at is not None and at < min(len(before), len(theirs), len(ours)):
        gap = float(before[at][theirs[at]] - before[at][ours[at]])
    parity = TokenParity(len(ours), len(theirs), same_share(theirs, ours), at, gap)
    heard = take.heard[-len(ours) :]  # those of a level that failed come first
    if min(len(heard), len(before)) < together:  # stock has answered, or a CUDA graph, in which nobody listens
        return parity, []
    logits = (torch.stack(list(side[:together])) for side in (before, heard))
    return parity, [_tensor(f"{call.method} guided logits", *logits)]


def _tensor(name: str, stock: Tensor | None, found: Tensor | None) -> TensorParity:
    if stock is None or found is None:
        return TensorParity(name, None, False, "it is missing" if found is None else "stock gives none")
    whole = not stock.is_floating_point()
    for what in ("shape", "dtype", "device"):
        theirs, ours = getattr(stock, what), getattr(found, what)
        if theirs != ours:
            return TensorParity(name, None, whole, f"its {what} is {ours}, stock's {theirs}")
    return TensorParity(name, signal_to_error_db(stock, found), whole)


def _tensor_failure(tensor: TensorParity, thresholds: Thresholds) -> str | None:
    ratio = tensor.signal_to_error_db
    if ratio is None:
        return f"{tensor.name}: {tensor.unlike}"
    least = math.inf if tensor.whole else thresholds.signal_to_error_db
    if ratio >= least:  # never true of nan
        return None
    wanted = "equality is" if tensor.whole else f"at least {least:g} dB are"
    return f"{tensor.name}: {ratio:.1f} dB of signal to error, {wanted} wanted"


def _wave(
    tts: Any, text: str, stock: Tensor, wave: Tensor, thresholds: Thresholds, transcribe: Transcriber | None
) -> WaveParity:
    ratio = signal_to_error_db(stock, wave)
    distance = log_mel_distance_db(stock, wave, tts.sr) if ratio is not None else None
    loudness = loudness_difference(stock, wave, tts.sr)
    similarity = _similarity(tts, stock, wave)
    words = None
    if transcribe is not None:
        rates = [word_error_rate(text, transcribe(side, tts.sr)) for side in (stock, wave)]
        words = rates[0], rates[1]
    failures = []
    if thresholds.wave_db is not None and not (ratio is not None and ratio >= thresholds.wave_db):
        found = "another shape than stock's" if ratio is None else f"{ratio:.1f} dB of signal to error"
        failures.append(f"{found}, at least {thresholds.wave_db:g} dB are wanted")
    longer = wave.shape[-1] / max(stock.shape[-1], 1) - 1
    if not abs(longer) <= thresholds.length:
        failures.append(f"{longer:+.1%} in length, at most {thresholds.length:.0%} is wanted")
    if distance is not None and thresholds.log_mel_db is not None and not distance <= thresholds.log_mel_db:
        failures.append(f"log-mel distance {distance:.2f} dB, at most {thresholds.log_mel_db:g} is wanted")
    if loudness is not None and not abs(loudness) <= thresholds.loudness_lu:
        failures.append(f"{loudness:+.2f} LU in loudness, at most {thresholds.loudness_lu:g} is wanted")
    if similarity is not None and not similarity >= thresholds.speaker_similarity:
        failures.append(f"speaker similarity {similarity:.4f}, at least {thresholds.speaker_similarity:g} is wanted")
    if words is not None and not words[1] - words[0] <= thresholds.words:
        failures.append(f"{words[1]:.1%} of the words misheard, {words[0]:.1%} of stock's")
    return WaveParity(text, ratio, distance, loudness, similarity, words, tuple(failures))


def _similarity(tts: Any, stock: Tensor, wave: Tensor) -> float | None:
    """Cosine of the voices that the model's own encoder hears in two waves."""
    if not hasattr(tts, "ve"):
        return None
    if not (torch.isfinite(stock).all() and torch.isfinite(wave).all()):
        return math.nan
    embed = own_method(tts.ve, "embeds_from_wavs")

    def voice(side: Tensor) -> Tensor:
        heard = resample(side[0].detach().cpu().numpy().astype(np.float32), tts.sr, _ENCODER_RATE)
        return torch.from_numpy(embed([heard], sample_rate=_ENCODER_RATE)[0])

    return float(torch.nn.functional.cosine_similarity(voice(stock), voice(wave), dim=0))
