"""A failing component runs at the next level, and the report records it."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest

import tts_compile as tc
from conftest import EAGER
from speech import SHORT, Speech, speak
from tts_compile.components.watermark import WatermarkComponent


def broken_backend(graph: Any, inputs: Any) -> Any:
    raise RuntimeError("this backend never works")


def interrupted_backend(graph: Any, inputs: Any) -> Any:
    raise KeyboardInterrupt


@pytest.fixture(scope="session", autouse=True)
def _backends() -> None:
    from torch._dynamo import register_backend

    register_backend(broken_backend, "test_broken")
    register_backend(interrupted_backend, "test_interrupted")


def config(backend: str, fallback: str = "fallback") -> tc.CompileConfig:
    return tc.CompileConfig(t3=tc.ComponentPolicy(execution="inductor", backend=backend), fallback=fallback)


def test_chain_is_stepped_down_once_per_failure() -> None:
    manager = tc.FallbackManager("vocoder", ["cuda_graph", "inductor", "eager"])
    assert manager.level == "cuda_graph"
    assert manager.fall("compile", ValueError("one\ntwo")) == "inductor"
    assert manager.fall("call", ValueError()) == manager.level == "eager"
    assert [(e.phase, e.error, e.action) for e in manager.events] == [
        ("compile", "ValueError: one", "inductor instead of cuda_graph"),
        ("call", "ValueError: no message", "eager instead of inductor"),
    ]
    with pytest.raises(tc.CompilationError, match="level eager"):
        manager.fall("call", ValueError("three"))
    assert len(manager.events) == 2


def test_policy_raise_keeps_the_level() -> None:
    manager = tc.FallbackManager("t3", ["inductor", "eager"], policy="raise")
    cause = ValueError("why")
    with pytest.raises(tc.CompilationError, match="why") as caught:
        manager.fall("compile", cause)
    assert caught.value.__cause__ is cause
    with pytest.raises(tc.CompilationError, match="t3: attach failed: no graphs here"):
        manager.note("attach", "no graphs here", "inductor instead")
    assert (manager.level, manager.events) == ("inductor", [])


def test_note_leaves_the_level() -> None:
    manager = tc.FallbackManager("t3", ["inductor", "eager"])
    manager.note("attach", "no graphs here", "inductor instead")
    assert manager.level == "inductor"
    (event,) = manager.events
    assert json.loads(json.dumps(event.to_dict()))["error"] == "no graphs here"
    assert datetime.fromisoformat(event.at).utcoffset() is not None


def test_failing_backend_gives_stocks_tokens_and_an_event(tts: Any, stock_speech: Callable[..., Speech]) -> None:
    fast = tc.compile_model(tts, config("test_broken"))
    for _ in range(2):
        assert speak(fast, SHORT) == stock_speech(SHORT)
    row = fast.report().components["t3"]
    assert (row.ran, row.compiled_calls) == ("eager", 0)
    assert row.calls > 0
    (event,) = row.fallbacks
    assert (event.component, event.phase, event.action) == ("t3", "compile", "eager instead of inductor")
    assert "BackendCompilerFailed" in event.error
    assert "BackendCompilerFailed" in str(fast.report())
    assert fast.report().to_dict()["components"]["t3"]["fallbacks"][0]["phase"] == "compile"


def test_unknown_backend_is_a_compile_failure(tts: Any, stock_speech: Callable[..., Speech]) -> None:
    fast = tc.compile_model(tts, config("no_such_backend"))
    assert speak(fast, SHORT) == stock_speech(SHORT)
    assert fast.report().components["t3"].ran == "eager"


def test_policy_raise_leaves_a_usable_model(tts: Any, stock_speech: Callable[..., Speech]) -> None:
    fast = tc.compile_model(tts, config("test_broken", fallback="raise"))
    for _ in range(2):
        with pytest.raises(tc.CompilationError, match="BackendCompilerFailed"):
            speak(fast, SHORT)
    with pytest.raises(tc.CompilationError):
        fast.warmup()
    fast.restore()
    assert speak(tts, SHORT) == stock_speech(SHORT)


def test_policy_raise_holds_for_attaching_too(tts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(tc.CompilationError, match="bf16"):
        tc.compile_model(tts, tc.CompileConfig(watermark=tc.ComponentPolicy(dtype="bf16"), fallback="raise"))

    def broken(self: Any) -> None:
        raise RuntimeError("no seam")

    monkeypatch.setattr(WatermarkComponent, "attach", broken)
    with pytest.raises(RuntimeError, match="no seam") as caught:
        tc.compile_model(tts, EAGER.replace(fallback="raise"))
    assert not isinstance(caught.value, tc.TTSCompileError)  # as it was
    assert "inference" not in vars(tts.t3)


def test_interrupt_is_not_swallowed(tts: Any) -> None:
    fast = tc.compile_model(tts, config("test_interrupted"))
    with pytest.raises(KeyboardInterrupt):
        speak(fast, SHORT, max_new_tokens=3)
    assert fast.report().components["t3"].fallbacks == ()


def test_error_in_the_users_own_code_is_not_a_compile_failure(
    eager: Any, fast: Any, stock_speech: Callable[..., Speech], monkeypatch: pytest.MonkeyPatch
) -> None:
    def mistaken(**kwargs: Any) -> Any:
        raise ValueError("mine")

    for handle in (eager, fast):
        before = handle.report().components["t3"].fallbacks
        with monkeypatch.context() as patch:
            patch.setattr(handle.t3, "prepare_input_embeds", mistaken)
            with pytest.raises(ValueError, match="mine"):
                speak(handle, SHORT)
        assert handle.report().components["t3"].fallbacks == before
        assert speak(handle, SHORT) == stock_speech(SHORT)


@pytest.mark.parametrize(
    "policy", [tc.ComponentPolicy(execution="cuda_graph"), tc.ComponentPolicy(execution="eager", dtype="fp16")]
)
def test_request_that_cannot_be_granted_is_an_event(tts: Any, policy: tc.ComponentPolicy) -> None:
    fast = tc.compile_model(tts, tc.CompileConfig(t3=policy))
    (event,) = fast.report().components["t3"].fallbacks
    assert event.phase == "attach"
