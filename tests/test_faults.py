"""Faults at every component, phase and kind of error: the model speaks on as stock does, and the report says why.

``docs/reliability.md`` counts the cases.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import test_flow
import test_vocoder
import tts_compile as tc
from conftest import EAGER, forget_failures
from speech import SHORT, Speech, speak
from tts_compile.components.compiled_component import EngineComponent
from tts_compile.components.component import EagerComponent
from tts_compile.components.flow import FlowComponent
from tts_compile.components.t3 import T3Component
from tts_compile.components.vocoder import VocoderComponent
from tts_compile.components.voice import ReferenceComponent, VoiceEncoderComponent
from tts_compile.components.watermark import WatermarkComponent
from tts_compile.errors import NonFiniteError
from tts_compile.execution import Region
from tts_compile.fallback import reason

QUICK = tc.ComponentPolicy(execution="inductor", backend="eager")
ENGINES = {"t3": T3Component, "flow": FlowComponent, "vocoder": VocoderComponent}
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


@pytest.fixture(scope="module")
def _engines(checkpoint: Path) -> Iterator[tc.CompiledTTS]:
    config = tc.CompileConfig.off().replace(**dict.fromkeys(ENGINES, QUICK))
    with tc.compile_model(tc.testing.load_checkpoint(checkpoint), config) as handle:
        yield handle


@pytest.fixture
def engines(_engines: tc.CompiledTTS) -> tc.CompiledTTS:
    """One model for all tests, as if nothing had ever failed."""
    forget_failures(_engines)
    return _engines


def check(handle: Any, name: str, stock_speech: Callable[..., Speech]) -> None:
    """What a component gives is what stock gives, and so is the generator after it."""
    if name == "t3":
        assert speak(handle, SHORT, 1, max_new_tokens=6) == stock_speech(SHORT, 1, max_new_tokens=6)
        return
    module, owner, given = (
        (test_flow, "flow", test_flow.flow) if name == "flow" else (test_vocoder, "mel2wav", test_vocoder.vocode)
    )
    found = given(getattr(handle.s3gen, owner).inference, 12)
    module.assert_alike(found, given(module.stock(handle), 12))


@contextlib.contextmanager
def failing(
    monkeypatch: pytest.MonkeyPatch, at: int, error: Callable[[], BaseException], times: int = 1
) -> Iterator[list[int]]:
    """Compiled functions fail from their ``at``-th call on, so many times."""
    run, seen = Region._run_compiled, [0]

    def broken(self: Region, *args: Any) -> Any:
        seen[0] += 1
        if at <= seen[0] < at + times:
            raise error()
        return run(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Region, "_run_compiled", broken)
        yield seen
    assert seen[0] >= at, "the fault was never reached"


def events(handle: Any, name: str) -> list[tuple[str, str]]:
    return [(event.phase, event.action) for event in handle.report().components[name].fallbacks]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("error", COMPILING)
@pytest.mark.parametrize("name", ENGINES)
def test_what_cannot_be_compiled(
    engines: Any,
    stock_speech: Callable[..., Speech],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    error: str,
    call: str,
) -> None:
    with failing(monkeypatch, CALLS[call], COMPILING[error]):
        check(engines, name, stock_speech)
    assert events(engines, name) == [("compile", "eager instead of inductor")]
    assert reason(COMPILING[error]()) in engines.report().components[name].fallbacks[0].error
    check(engines, name, stock_speech)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("error", RUNNING)
@pytest.mark.parametrize("name", ENGINES)
def test_what_fails_while_it_runs(
    engines: Any,
    stock_speech: Callable[..., Speech],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    error: str,
    call: str,
) -> None:
    memory = "memory" in error
    with failing(monkeypatch, CALLS[call], RUNNING[error], times=1):
        check(engines, name, stock_speech)
    again = ("memory", "inductor again, after releasing memory")
    fell = ("call", "eager instead of inductor")
    assert events(engines, name) == [again if memory else fell]
    check(engines, name, stock_speech)
    assert engines._components[name].fallback.level == "inductor"  # once is not for good


@pytest.mark.parametrize("name", ENGINES)
def test_memory_that_stays_short_falls_to_stock(
    engines: Any, stock_speech: Callable[..., Speech], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    component = engines._components[name]

    def short(*args: Any, **kwargs: Any) -> None:
        raise MemoryError("no memory left")

    with monkeypatch.context() as patch:
        patch.setattr(component, "_engine_call", short)
        for _ in range(3):
            check(engines, name, stock_speech)
        attempts = component._left_to_stock
        found = events(engines, name)
        check(engines, name, stock_speech)
    assert found[:3] == [
        ("memory", "inductor again, after releasing memory"),
        ("memory", "eager instead of inductor"),
        ("memory", "stock instead of eager"),
    ]
    assert found[-1] == ("memory", "stock instead of eager, from now on: 3 failures")
    assert events(engines, name) == found
    assert component._left_to_stock == attempts + 1


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", ENGINES)
def test_an_interrupt(
    engines: Any, stock_speech: Callable[..., Speech], monkeypatch: pytest.MonkeyPatch, name: str, call: str
) -> None:
    with failing(monkeypatch, CALLS[call], KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        check(engines, name, stock_speech)
    assert events(engines, name) == []
    check(engines, name, stock_speech)
    assert events(engines, name) == []


@pytest.mark.parametrize("error", [*COMPILING, *RUNNING, "interrupt"])
@pytest.mark.parametrize("name", ENGINES)
def test_a_warm_up(
    engines: Any, stock_speech: Callable[..., Speech], monkeypatch: pytest.MonkeyPatch, name: str, error: str
) -> None:
    component = engines._components[name]
    state = torch.get_rng_state()
    if error == "interrupt":
        with failing(monkeypatch, 1, KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
            component.warm_up()
        assert events(engines, name) == []
    else:
        with failing(monkeypatch, 1, {**COMPILING, **RUNNING}[error]):
            component.warm_up()
        phase = "compile" if error in COMPILING else "memory" if "memory" in error else "warm-up"
        assert [phase_ for phase_, _ in events(engines, name)] == [phase]
    assert torch.equal(torch.get_rng_state(), state)
    check(engines, name, stock_speech)


@pytest.mark.parametrize("error", ["broken kernel", "disk full", "out of host memory", "interrupt"])
@pytest.mark.parametrize("name", [*ENGINES, *EAGER_ONES])
def test_attaching(
    tts: Any, stock_speech: Callable[..., Speech], monkeypatch: pytest.MonkeyPatch, name: str, error: str
) -> None:
    failure = {**COMPILING, **RUNNING, "interrupt": KeyboardInterrupt}[error]

    def broken(*args: Any, **kwargs: Any) -> None:
        raise failure()

    parts = (tts, tts.t3, tts.s3gen, tts.s3gen.flow, tts.s3gen.mel2wav, tts.ve, tts.watermarker)
    before = [dict(vars(part)) for part in parts]
    for where in ("__init__", "attach"):
        with monkeypatch.context() as patch:
            patch.setattr({**ENGINES, **EAGER_ONES}[name], where, broken)
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
    for other in handle._components:
        monkeypatch.setattr(handle._components[other], "release", lambda other=other: released.append(other))
    monkeypatch.setattr(handle._components[name], "release", broken)
    if error == "interrupt":
        with pytest.raises(KeyboardInterrupt):
            handle.restore()
    else:
        handle.restore()
        assert events(handle, name) == [("restore", "what was kept is not given back")]
        assert released == [other for other in handle._components if other != name]
    assert not handle.report().attached
    assert "inference" not in vars(tts.t3)
    assert speak(tts, SHORT, 1, max_new_tokens=6) == stock_speech(SHORT, 1, max_new_tokens=6)
    with tc.compile_model(tts, EAGER) as handle:
        assert speak(handle, SHORT, 1, max_new_tokens=6) == stock_speech(SHORT, 1, max_new_tokens=6)


VOICE = tc.CompileConfig.off().replace(**dict.fromkeys(EAGER_ONES, tc.ComponentPolicy()))
# What each component calls in the middle of its work.
INNER = {"voice_encoder": "_embed", "reference": "_answer", "watermark": "_mark"}


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tc.testing.make_reference_wav(tmp_path_factory.mktemp("voice") / "voice.wav", seconds=1)


def spoken(handle: Any, name: str, recording: Path) -> Any:
    """What a component without an engine gives, as plain values."""
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
        component = handle._components[name]
        inner = getattr(component, INNER[name])
        for at in (0, 1):  # in the first call, and in a later one
            failed = []

            def broken(*args: Any, at: int = at, failed: list[int] = failed, **kwargs: Any) -> Any:
                failed.append(1)
                if len(failed) == at + 1:
                    raise failure()
                return inner(*args, **kwargs)

            with monkeypatch.context() as patch:
                patch.setattr(component, INNER[name], broken)
                for _ in range(at):
                    assert spoken(handle, name, recording) == expected
                if error == "interrupt":
                    with pytest.raises(KeyboardInterrupt):
                        spoken(handle, name, recording)
                else:
                    assert spoken(handle, name, recording) == expected
            assert spoken(handle, name, recording) == expected
        again = ("memory", "eager again, after releasing memory")
        fell = ("call", "stock instead of eager")
        wanted = [] if error == "interrupt" else [again if "memory" in error else fell] * 2
        assert events(handle, name) == wanted
        with monkeypatch.context() as patch:
            patch.setattr(component, "_load", lambda: (_ for _ in ()).throw(failure()))
            if error == "interrupt":
                with pytest.raises(KeyboardInterrupt):
                    component.warm_up()
            else:
                component.warm_up()
                assert events(handle, name)[2][0] == ("memory" if "memory" in error else "warm-up")
        assert spoken(handle, name, recording) == expected


@pytest.mark.parametrize("name", ENGINES)
def test_a_mistake_of_the_callers_is_no_failure(engines: Any, name: str) -> None:
    method = engines._components[name]._seam._replacement
    with pytest.raises(TypeError):
        method(no_such_argument=1)
    assert events(engines, name) == []
    assert engines._components[name].fallback.level == "inductor"


def test_every_component_is_here() -> None:
    assert {**ENGINES, **EAGER_ONES}.keys() == set(tc.config.COMPONENTS)
    assert all(issubclass(kind, EngineComponent) for kind in ENGINES.values())
    assert all(issubclass(kind, EagerComponent) for kind in EAGER_ONES.values())
