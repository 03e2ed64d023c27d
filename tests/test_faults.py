"""Faults at every component, phase and kind of error: the model goes on as stock does, and the report has the reason.

``docs/reliability.md`` counts the cases.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tts_compile as tc
from conftest import EAGER, ENGINES, components
from pretend import BREAKABLE
from speech import SHORT, Speech, speak
from stages import STAGES, Made, assert_alike
from tts_compile.components import watermark
from tts_compile.components.compiled_component import CompiledComponent
from tts_compile.components.component import EagerComponent
from tts_compile.components.flow import FlowComponent
from tts_compile.components.t3 import T3Component
from tts_compile.components.vocoder import VocoderComponent
from tts_compile.components.voice import ReferenceComponent, VoiceEncoderComponent, encoder, reference
from tts_compile.components.watermark import WatermarkComponent
from tts_compile.errors import NonFiniteError
from tts_compile.fallback import reason
from tts_compile.families import english

COMPILED = {"t3": T3Component, "flow": FlowComponent, "vocoder": VocoderComponent}
EAGER_ONES = {
    "voice_encoder": VoiceEncoderComponent,
    "reference": ReferenceComponent,
    "watermark": WatermarkComponent,
}


def _graph_break() -> Exception:
    from torch._dynamo.exc import Unsupported

    return Unsupported("graph break under fullgraph")


def _backend_failure() -> Exception:
    from torch._dynamo.exc import BackendCompilerFailed

    return BackendCompilerFailed(lambda: None, RuntimeError("the backend is broken"))


def _no_compiler() -> Exception:
    from torch._inductor.exc import InvalidCxxCompiler

    return InvalidCxxCompiler()


def _recompile_limit() -> Exception:
    from torch._dynamo import exc

    kind = getattr(exc, "FailOnRecompileLimitHit", exc.RecompileError)
    return kind("recompile limit reached")


COMPILING: dict[str, Callable[[], BaseException]] = {
    "compiler missing": _no_compiler,
    "backend failure": _backend_failure,
    "graph break": _graph_break,
    "recompile limit": _recompile_limit,
    "disk full": lambda: OSError(errno.ENOSPC, "No space left on device"),
    "read-only cache": lambda: OSError(errno.EROFS, "Read-only file system"),
}
RUNNING: dict[str, Callable[[], BaseException]] = {
    "broken kernel": lambda: RuntimeError("CUDA error: an illegal instruction was encountered"),
    "not finite": lambda: NonFiniteError("T3 gave non-finite logits"),
    "out of memory": lambda: torch.OutOfMemoryError("CUDA out of memory"),
    "out of host memory": lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried much"),
}
# The first function that is compiled, one in the middle of an utterance, and the last of the flow's first solver step.
CALLS = {"first call": 1, "mid-utterance": 3}


@pytest.fixture
def check(stock_speech: Callable[..., Speech], stock_made: Callable[..., Made]) -> Callable[[Any, str], None]:
    """Compares a component's result, and the generator after it, with stock's."""

    def checked(handle: Any, name: str) -> None:
        if name == "t3":
            assert speak(handle, SHORT, 1, max_new_tokens=6) == stock_speech(SHORT, 1, max_new_tokens=6)
        else:
            assert_alike(STAGES[name].call(handle, 12), stock_made(STAGES[name], 12))

    return checked


Check = Callable[[Any, str], None]


def events(handle: Any, name: str) -> list[tuple[str, str]]:
    return [(event.phase, event.action) for event in handle.report().components[name].fallbacks]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("error", COMPILING)
@pytest.mark.parametrize("name", ENGINES)
def test_what_cannot_be_compiled(traced: Any, check: Check, name: str, error: str, call: str) -> None:
    with BREAKABLE.failing(CALLS[call], COMPILING[error]):
        check(traced, name)
    assert events(traced, name) == [("compile", "eager instead of inductor")]
    assert reason(COMPILING[error]()) in traced.report().components[name].fallbacks[0].error
    check(traced, name)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("error", RUNNING)
@pytest.mark.parametrize("name", ENGINES)
def test_what_fails_while_it_runs(traced: Any, check: Check, name: str, error: str, call: str) -> None:
    memory = "memory" in error
    with BREAKABLE.failing(CALLS[call], RUNNING[error]):
        check(traced, name)
    again = ("memory", "inductor again, after releasing memory")
    fell = ("call", "eager instead of inductor")
    assert events(traced, name) == [again if memory else fell]
    check(traced, name)
    assert components(traced)[name].fallback.level == "inductor"  # once is not for good


@pytest.mark.parametrize("name", ENGINES)
def test_memory_that_stays_short_falls_to_stock(
    traced: Any, check: Check, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    component = components(traced)[name]

    def short(*args: Any, **kwargs: Any) -> None:
        raise MemoryError("no memory left")

    with monkeypatch.context() as patch:
        patch.setattr(component.engine, "inference", short)
        for _ in range(3):
            check(traced, name)
        attempts = component.stock_calls
        found = events(traced, name)
        check(traced, name)
    assert found[:3] == [
        ("memory", "inductor again, after releasing memory"),
        ("memory", "eager instead of inductor"),
        ("memory", "stock instead of eager"),
    ]
    assert found[-1] == ("memory", "stock instead of eager, from now on: 3 failures")
    assert events(traced, name) == found
    assert component.stock_calls == attempts + 1


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", ENGINES)
def test_an_interrupt(traced: Any, check: Check, name: str, call: str) -> None:
    with BREAKABLE.failing(CALLS[call], KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        check(traced, name)
    assert events(traced, name) == []
    check(traced, name)
    assert events(traced, name) == []


@pytest.mark.parametrize("error", [*COMPILING, *RUNNING, "interrupt"])
@pytest.mark.parametrize("name", ENGINES)
def test_a_warm_up(traced: Any, check: Check, name: str, error: str) -> None:
    component = components(traced)[name]
    state = torch.get_rng_state()
    if error == "interrupt":
        with BREAKABLE.failing(1, KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
            component.warm_up()
        assert events(traced, name) == []
    else:
        with BREAKABLE.failing(1, {**COMPILING, **RUNNING}[error]):
            component.warm_up()
        phase = "compile" if error in COMPILING else "memory" if "memory" in error else "warm-up"
        assert [phase_ for phase_, _ in events(traced, name)] == [phase]
    assert torch.equal(torch.get_rng_state(), state)
    check(traced, name)


@pytest.mark.parametrize("error", ["broken kernel", "disk full", "out of host memory", "interrupt"])
@pytest.mark.parametrize("name", [*ENGINES, *EAGER_ONES])
def test_attaching(
    tts: Any, stock_speech: Callable[..., Speech], monkeypatch: pytest.MonkeyPatch, name: str, error: str
) -> None:
    failure = {**COMPILING, **RUNNING, "interrupt": KeyboardInterrupt}[error]

    def broken(*args: Any, **kwargs: Any) -> None:
        raise failure()

    speak(tts, SHORT, 1, max_new_tokens=1)  # stock's first call leaves attributes on T3
    parts = (tts, tts.t3, tts.s3gen, tts.s3gen.flow, tts.s3gen.mel2wav, tts.ve, tts.watermarker)
    before = [dict(vars(part)) for part in parts]
    for where in ("__init__", "attach"):
        with monkeypatch.context() as patch:
            patch.setattr({**COMPILED, **EAGER_ONES}[name], where, broken)
            if error == "interrupt":
                with pytest.raises(KeyboardInterrupt):
                    tc.compile_model(tts, EAGER)
            else:
                with tc.compile_model(tts, EAGER) as handle:
                    assert handle.report().components[name].ran == "stock"
                    ((phase, action),) = events(handle, name)
                    assert (phase, action) == ("attach", "stock")
                    assert speak(handle, SHORT, 1, max_new_tokens=6) == stock_speech(SHORT, 1, max_new_tokens=6)
        assert [dict(vars(part)) for part in parts] == before


@pytest.mark.parametrize("error", ["broken kernel", "out of memory", "interrupt"])
@pytest.mark.parametrize("name", [*ENGINES, *EAGER_ONES])
def test_restoring(
    tts: Any, stock_speech: Callable[..., Speech], monkeypatch: pytest.MonkeyPatch, name: str, error: str
) -> None:
    failure = {**RUNNING, "interrupt": KeyboardInterrupt}[error]
    handle = tc.compile_model(tts, EAGER)

    def broken() -> None:
        raise failure()

    released: list[str] = []
    parts = components(handle)
    for other in parts:
        monkeypatch.setattr(parts[other], "release", lambda other=other: released.append(other))
    monkeypatch.setattr(parts[name], "release", broken)
    if error == "interrupt":
        with pytest.raises(KeyboardInterrupt):
            handle.restore()
    else:
        handle.restore()
        assert events(handle, name) == [("restore", "what was kept is not given back")]
        assert released == [other for other in parts if other != name]
    assert not handle.report().attached
    assert "inference" not in vars(tts.t3)
    assert speak(tts, SHORT, 1, max_new_tokens=6) == stock_speech(SHORT, 1, max_new_tokens=6)
    with tc.compile_model(tts, EAGER) as handle:
        assert speak(handle, SHORT, 1, max_new_tokens=6) == stock_speech(SHORT, 1, max_new_tokens=6)


VOICE = tc.CompileConfig.off().replace(**dict.fromkeys(EAGER_ONES, tc.ComponentPolicy()))
# A function that each component calls in the middle of its work, and stock does not.
INNER: dict[str, tuple[str, tuple[Any, ...]]] = {
    "voice_encoder": ("mel_spectrogram", (encoder,)),
    "reference": ("resample", (english, reference)),  # in a call, and in a warm-up
    "watermark": ("resample", (watermark,)),
}


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tc.testing.make_reference_wav(tmp_path_factory.mktemp("voice") / "voice.wav", seconds=1)


def spoken(handle: Any, name: str, recording: Path) -> Any:
    """Returns the result of a component without an engine, as plain values."""
    wave = np.sin(np.arange(24_000) / 20).astype(np.float32) * 0.1
    if name == "voice_encoder":
        return handle.ve.embeds_from_wavs([wave], sample_rate=16_000).tolist()
    if name == "watermark":
        return handle.watermarker.apply_watermark(wave, sample_rate=24_000).tolist()
    before = handle.conds
    handle.prepare_conditionals(str(recording))
    found = handle.conds.t3.speaker_emb.tolist(), handle.conds.gen["prompt_token"].tolist()
    handle.conds = before
    return found


@pytest.mark.parametrize("error", ["broken kernel", "disk full", "out of memory", "interrupt"])
@pytest.mark.parametrize("name", EAGER_ONES)
def test_components_without_an_engine(
    tts: Any, monkeypatch: pytest.MonkeyPatch, recording: Path, name: str, error: str
) -> None:
    expected = spoken(tts, name, recording)
    failure = {**COMPILING, **RUNNING, "interrupt": KeyboardInterrupt}[error]
    with tc.compile_model(tts, VOICE) as handle:
        component = components(handle)[name]
        function, modules = INNER[name]
        inner = getattr(modules[0], function)
        failing: list[bool] = []  # taken off the end by each call of the inner function

        def broken(*args: Any, **kwargs: Any) -> Any:
            if failing and failing.pop():
                raise failure()
            return inner(*args, **kwargs)

        def answer() -> Any:
            component.release()  # or a voice would be answered from the cache
            return spoken(handle, name, recording)

        for module in modules:
            monkeypatch.setattr(module, function, broken)
        for _ in range(2):  # in the first call, and in a later one
            failing.append(True)
            if error == "interrupt":
                with pytest.raises(KeyboardInterrupt):
                    answer()
            else:
                assert answer() == expected
            assert answer() == expected
            assert not failing
        again = ("memory", "eager again, after releasing memory")
        fell = ("call", "stock instead of eager")
        wanted = [] if error == "interrupt" else [again if "memory" in error else fell] * 2
        assert events(handle, name) == wanted
        failing += [True, True]  # a shortage of memory has a second attempt
        if error == "interrupt":
            with pytest.raises(KeyboardInterrupt):
                component.warm_up()
        else:
            component.warm_up()
            assert events(handle, name)[2][0] == ("memory" if "memory" in error else "warm-up")
        failing.clear()
        assert answer() == expected


@pytest.mark.parametrize("name", ENGINES)
def test_a_mistake_of_the_callers_is_no_failure(traced: Any, name: str) -> None:
    owner = traced.t3 if name == "t3" else STAGES[name].module(traced)
    with pytest.raises(TypeError):
        owner.inference(no_such_argument=1)
    assert events(traced, name) == []
    assert components(traced)[name].fallback.level == "inductor"


def test_every_component_is_here() -> None:
    assert {**COMPILED, **EAGER_ONES}.keys() == set(tc.config.COMPONENTS)
    assert tuple(COMPILED) == ENGINES
    assert all(issubclass(kind, CompiledComponent) for kind in COMPILED.values())
    assert all(issubclass(kind, EagerComponent) for kind in EAGER_ONES.values())
