"""On a CUDA device: identity, exactness, failed recordings, eviction, two models, memory."""

from __future__ import annotations

import copy
import gc
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tts_compile as tc
from sameness import same
from speech import SHORT, TEXTS, signal_to_error_db, text_tokens
from tts_compile.execution.cuda_graph import CudaRecorder, GraphCache
from tts_compile.execution.process_lock import ProcessLock
from tts_compile.families.sampling import NoiseStream

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

LEAST_DB = 60
SETTINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.3},
    {"temperature": 1.0, "repetition_penalty": 1.0},
    {"top_p": 0.6},
    {"min_p": 0.0, "temperature": 2.0},
    {"cfg_weight": 1.5},
]


@pytest.fixture(scope="module", autouse=True)
def _full_precision() -> Iterator[None]:
    """Padded and unpadded convolutions may take different TF32 kernels."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Any:
    """Stock, on the GPU; tests compile copies."""
    return tc.testing.load_checkpoint(checkpoint, device="cuda")


@pytest.fixture(scope="module")
def fast(model: Any) -> Iterator[tc.CompiledTTS]:
    with tc.compile_model(copy.deepcopy(model)) as handle:
        handle.warmup()
        yield handle


@pytest.mark.parametrize("mmap", [True, False])
def test_loading_gives_what_stock_loads(checkpoint: Path, model: Any, mmap: bool) -> None:
    stock = tc.testing.load_checkpoint(checkpoint, device="cuda")  # the shared model has spoken
    with tc.testing.architecture_of(checkpoint):
        same(tc.load_model("ChatterboxTTS", checkpoint, "cuda", mmap=mmap), stock)
        half = tc.load_model("ChatterboxTTS", checkpoint, "cuda", dtype="bf16")
    assert half.generate(SHORT).isfinite().all()


def spoken(tts: Any, text: str, seed: int = 0, **settings: Any) -> tuple[list[int], bytes]:
    torch.manual_seed(seed)
    given = {"max_new_tokens": 1000, "top_p": 1.0, **settings}
    tokens = tts.t3.inference(t3_cond=tts.conds.t3, text_tokens=text_tokens(tts, text).cuda(), **given)
    return tokens[0].tolist(), torch.cuda.get_rng_state().numpy().tobytes()


def heard(tts: Any, text: str, seed: int = 0) -> tuple[Tensor, bytes]:
    torch.manual_seed(seed)
    return tts.generate(text), torch.cuda.get_rng_state().numpy().tobytes()


@pytest.mark.parametrize("length", TEXTS)
def test_tokens_are_stocks(model: Any, fast: tc.CompiledTTS, length: int) -> None:
    for seed in range(3):
        assert spoken(fast, TEXTS[length], seed) == spoken(model, TEXTS[length], seed)


@pytest.mark.parametrize("settings", SETTINGS)
def test_settings(model: Any, fast: tc.CompiledTTS, settings: dict[str, Any]) -> None:
    assert spoken(fast, SHORT, 2, **settings) == spoken(model, SHORT, 2, **settings)


def test_the_wave_is_stocks(model: Any, fast: tc.CompiledTTS) -> None:
    for length in (20, 120):
        (expected, state), (found, state_after) = heard(model, TEXTS[length]), heard(fast, TEXTS[length])
        assert signal_to_error_db(expected, found) > LEAST_DB
        assert state_after == state


def test_graphs_ran_and_none_was_recorded_after_the_warm_up(fast: tc.CompiledTTS) -> None:
    before = fast.report().components
    for text in TEXTS.values():
        heard(fast, text)
    rows = fast.report().components
    for name in ("t3", "flow"):
        assert (rows[name].ran, rows[name].graphs) == ("cuda_graph", before[name].graphs)
        assert rows[name].compiled_calls == rows[name].calls > before[name].calls
        assert not rows[name].fallbacks


def test_noise_is_multinomials() -> None:
    weights = torch.softmax(torch.randn(1, 8194, device="cuda"), -1)
    torch.manual_seed(1)
    expected = [int(torch.multinomial(weights, 1)) for _ in range(5)]
    state = torch.cuda.get_rng_state()
    torch.manual_seed(1)
    noise = NoiseStream(weights)
    assert [int((weights / noise[index]).argmax()) for index in range(5)] == expected
    noise[9]
    noise.settle(5)
    assert torch.equal(torch.cuda.get_rng_state(), state)


def test_a_failed_recording_leaves_the_device_usable() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    graphs = GraphCache(CudaRecorder(device), ProcessLock())
    stream = torch.cuda.current_stream()
    with pytest.raises(tc.CompilationError):
        graphs.replay("wrong", lambda x: x * float(x.sum()), [torch.ones(4, device=device)])
    assert torch.cuda.current_stream() == stream
    assert graphs.replay("right", lambda x: 2 * x, [torch.ones(4, device=device)]).tolist() == [2] * 4


def test_eviction() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    graphs = GraphCache(CudaRecorder(device), ProcessLock(), ceiling=2)
    for size in (1, 2, 3, 1, 2, 3):
        assert graphs.replay(size, lambda x: 2 * x, [torch.ones(size, device="cuda")]).tolist() == [2] * size
        assert len(graphs) <= 2


def test_two_models_on_one_device(model: Any, fast: tc.CompiledTTS) -> None:
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.t3.speech_head.weight.mul_(0.5)
    expected = spoken(other, SHORT), spoken(model, SHORT)
    with tc.compile_model(other) as second:
        for _ in range(2):
            assert (spoken(second, SHORT), spoken(fast, SHORT)) == expected
        streams = torch.cuda.Stream(), torch.cuda.Stream()
        for _ in range(3):  # the work of one comes after the work of the other, although nothing is read between
            found = []
            for stream, handle in zip(streams, (second, fast)):
                stream.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(stream):
                    found.append(spoken(handle, SHORT))
            assert tuple(found) == expected


def test_threads_take_turns(model: Any, fast: tc.CompiledTTS) -> None:
    expected = {text: spoken(model, text, temperature=1e-3)[0] for text in (SHORT, TEXTS[120])}
    found: dict[str, list[int]] = {}

    def speak(text: str) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            found[text] = spoken(fast, text, temperature=1e-3)[0]

    threads = [threading.Thread(target=speak, args=(text,)) for text in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


def test_a_batch_speaks_as_generate_does(fast: tc.CompiledTTS) -> None:
    texts = [*TEXTS.values(), SHORT, "Who goes there?"]
    expected = [heard(fast, text, seed)[0] for seed, text in enumerate(texts)]
    state = torch.cuda.get_rng_state()
    for max_batch in (None, 2):
        waves = fast.generate_batch(texts, seeds=range(len(texts)), max_batch=max_batch)
        for wave, alone in zip(waves, expected):
            assert signal_to_error_db(alone, wave) > LEAST_DB
    assert torch.equal(torch.cuda.get_rng_state(), state)
    row = fast.report().components["t3"]
    assert (row.ran, row.compiled_calls) == ("cuda_graph", row.calls)


def test_restore_gives_memory_back(model: Any) -> None:
    copied = copy.deepcopy(model)

    def speak() -> tuple[int, int]:
        with tc.compile_model(copied) as handle:
            heard(handle, SHORT)
            return _held()

    heard(copied, SHORT)
    speak()  # the first call allocates workspaces of libraries, which stay
    before = _held()
    assert all(during > outside for during, outside in zip(speak(), before))
    assert all(after - outside < 4 * 2**20 for after, outside in zip(_held(), before))


def _held() -> tuple[int, int]:
    """Returns the bytes in use, and the bytes taken from the device, which count a pool that is kept."""
    gc.collect()
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
