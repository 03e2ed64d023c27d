"""T3's loop by CUDA graphs against stock, on a CPU that pretends to have them."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch

import tts_compile as tc
from pretend import PretendRecorder, pretend
from speech import SHORT, TEXTS, Speech, speak, speak_stock
from test_t3_identity import SETTINGS
from tts_compile.bucketing import ChunkBucketer
from tts_compile.components.t3 import cache, engine, graph_loop
from tts_compile.components.t3.cache import KVCache

ONLY = tc.CompileConfig.off().replace(warmup_samples=0, t3=tc.ComponentPolicy(execution="cuda_graph"))


@pytest.fixture
def graphed(tts: Any, recorder: PretendRecorder) -> tc.CompiledTTS:
    return tc.compile_model(tts, ONLY)


def row(handle: tc.CompiledTTS) -> tc.ComponentReport:
    return handle.report().components["t3"]


@pytest.mark.parametrize(("length", "seed"), [(1, 0), (20, 0), (120, 0), (300, 1)])
def test_texts_and_seeds(graphed: tc.CompiledTTS, stock_speech: Callable[..., Speech], length: int, seed: int) -> None:
    assert speak(graphed, TEXTS[length], seed) == stock_speech(TEXTS[length], seed)
    assert row(graphed).ran == "cuda_graph"
    assert row(graphed).compiled_calls == row(graphed).calls > 0


@pytest.mark.parametrize("name", SETTINGS)
def test_settings(graphed: tc.CompiledTTS, stock_speech: Callable[..., Speech], name: str) -> None:
    settings = {"max_new_tokens": 9, **SETTINGS[name]}
    assert speak(graphed, SHORT, 2, **settings) == stock_speech(SHORT, 2, **settings)


@pytest.mark.parametrize("budget", [1, 2, 3, graph_loop.AHEAD, graph_loop.AHEAD + 1])
def test_small_budgets(graphed: tc.CompiledTTS, stock_speech: Callable[..., Speech], budget: int) -> None:
    assert speak(graphed, SHORT, max_new_tokens=budget) == stock_speech(SHORT, max_new_tokens=budget)


def test_one_utterance_leaves_nothing_for_the_next(
    graphed: tc.CompiledTTS, stock_speech: Callable[..., Speech]
) -> None:
    for text, settings in ((TEXTS[300], {}), (SHORT, {"temperature": 0.3}), (SHORT, {}), (TEXTS[120], {})):
        settings = {"max_new_tokens": 9, **settings}
        assert speak(graphed, text, 3, **settings) == stock_speech(text, 3, **settings)


def test_a_warm_up_records_what_later_calls_need(graphed: tc.CompiledTTS) -> None:
    state = torch.get_rng_state()
    graphed.warmup()
    assert torch.equal(torch.get_rng_state(), state)
    made = row(graphed).graphs
    for text in TEXTS.values():
        speak(graphed, text, max_new_tokens=3)
        speak(graphed, text, max_new_tokens=3, cfg_weight=0.0)
    assert (row(graphed).graphs, row(graphed).recompiles_after_warmup) == (made, 0)


def test_an_utterance_goes_on_beyond_the_end_of_its_cache(
    tts: Any, recorder: PretendRecorder, stock_speech: Callable[..., Speech], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = stock_speech(TEXTS[120], 1)
    monkeypatch.setattr(graph_loop, "RUNGS", ChunkBucketer.regular(8, 16_384))
    for module in (cache, engine):
        monkeypatch.setattr(module, "CAPACITY", ChunkBucketer.regular(16, 16_384))
    handle = tc.compile_model(tts, ONLY)
    assert speak(handle, TEXTS[120], 1) == expected
    assert recorder.alive < len(recorder.recorded)  # those of the smaller caches were given up
    made = len(recorder.recorded)
    assert speak(handle, TEXTS[120], 1) == expected
    assert len(recorder.recorded) - made <= made  # the larger cache stays
    assert row(handle).ran == "cuda_graph"


@pytest.mark.parametrize("fail_at", [0, 1])
def test_a_failed_recording_begins_the_utterance_anew(
    tts: Any, stock_speech: Callable[..., Speech], monkeypatch: pytest.MonkeyPatch, fail_at: int
) -> None:
    expected = stock_speech(TEXTS[120], 1)
    pretend(monkeypatch, fail_at)
    monkeypatch.setattr(graph_loop, "RUNGS", ChunkBucketer.regular(8, 16_384))
    policy = tc.ComponentPolicy(execution="cuda_graph", backend="eager")
    with tc.compile_model(tts, ONLY.replace(t3=policy)) as handle:
        assert speak(handle, TEXTS[120], 1) == expected
        (event,) = row(handle).fallbacks
        assert (event.phase, event.action) == ("compile", "inductor instead of cuda_graph")
        assert "stream is capturing" in event.error
        assert row(handle).ran in ("inductor", "eager")


def test_raise_means_raise(tts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, 0)
    with tc.compile_model(tts, ONLY.replace(fallback="raise")) as handle:
        state = torch.get_rng_state()
        torch.manual_seed(0)
        before = torch.get_rng_state()
        with pytest.raises(tc.CompilationError, match="stream is capturing"):
            speak(handle, SHORT, 0)
        assert torch.equal(torch.get_rng_state(), before)
        torch.set_rng_state(state)


def test_restore_gives_memory_back(tts: Any, recorder: PretendRecorder) -> None:
    def caches() -> int:
        gc.collect()
        return sum(issubclass(type(thing), KVCache) for thing in gc.get_objects())  # proxies may be dead

    before = caches()
    handle = tc.compile_model(tts, ONLY)
    speak(handle, SHORT)
    with handle.stock():
        assert recorder.alive > 0
        assert caches() > before
    handle.restore()
    assert (recorder.alive, recorder.released > 0) == (0, True)
    assert caches() == before


def with_own_t3(tts: Any) -> Any:
    """Returns the model with a T3 of its own; the rest is shared."""
    copied = copy.copy(tts)
    copied.t3 = copy.deepcopy(tts.t3)
    return copied


def test_moved_weights_are_recorded_anew(tts: Any, recorder: PretendRecorder) -> None:
    copied = with_own_t3(tts)
    with tc.compile_model(copied, ONLY) as handle:
        speak(handle, SHORT)
        before = recorder.alive
        for parameter in copied.t3.parameters():
            parameter.data = parameter.data * 1.25
        assert speak(handle, SHORT) == speak_stock(copied, SHORT)
        assert recorder.alive == before < len(recorder.recorded)


def test_non_finite_logits_are_an_error(tts: Any, recorder: PretendRecorder) -> None:
    copied = with_own_t3(tts)
    with tc.compile_model(copied, ONLY) as handle:
        with torch.no_grad():
            copied.t3.speech_emb.weight[:] = torch.nan
        with pytest.raises(tc.ModelStateError, match="non-finite"):
            speak(handle, SHORT)


def test_two_models_keep_to_themselves(tts: Any, recorder: PretendRecorder) -> None:
    other = with_own_t3(tts)
    with torch.no_grad():
        other.t3.speech_head.weight.mul_(0.5)
    with tc.compile_model(tts, ONLY) as first, tc.compile_model(other, ONLY) as second:
        for _ in range(2):
            assert speak(first, SHORT) == speak_stock(tts, SHORT)
            assert speak(second, SHORT) == speak_stock(other, SHORT)


def test_a_wish_for_graphs_on_a_cpu_is_answered_with_a_reason(tts: Any) -> None:
    with tc.compile_model(tts, ONLY) as handle:
        (event,) = row(handle).fallbacks
        assert "no CUDA graphs for t3 here" in event.error


@pytest.mark.parametrize("backend", ["eager", "no such backend"])
def test_kernels_inside_a_graph_can_be_compiled(
    tts: Any, recorder: PretendRecorder, stock_speech: Callable[..., Speech], backend: str
) -> None:
    policy = tc.ComponentPolicy(execution="cuda_graph", fuse=True, backend=backend)
    with tc.compile_model(tts, ONLY.replace(t3=policy)) as handle:
        handle.warmup()
        recorded = len(recorder.recorded)
        for length in (20, 120):
            assert speak(handle, TEXTS[length], 1, max_new_tokens=6) == stock_speech(TEXTS[length], 1, max_new_tokens=6)
        found = row(handle)
    assert (found.ran, found.compiled_calls, found.recompiles_after_warmup) == ("cuda_graph", found.calls, 0)
    if backend == "eager":
        assert found.graphs > recorded  # those that torch compiled
        assert not found.fallbacks
    else:
        assert found.graphs == recorded
        assert {event.action for event in found.fallbacks} == {"torch's own kernels inside the CUDA graph"}
