"""One synthetic checkpoint and two models for the whole run.

``model`` is stock and tests attach to it; ``fast`` stays compiled, so that compiling is paid for once.
"""

from __future__ import annotations

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # a thread for each of the workers, which share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import getpass
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tts_compile as tc
from pretend import PretendRecorder, pretend
from speech import Speech, random_states, seed_everything, speak_stock
from tts_compile import cache
from tts_compile.components.compiled_component import EngineComponent

SPEECH_TOKENS = 16
EAGER = tc.CompileConfig(
    **dict.fromkeys(("t3", "flow", "vocoder"), tc.ComponentPolicy(execution="eager")), warmup_samples=0
)


@pytest.fixture(scope="session", autouse=True)
def _clean_environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("TTS_COMPILE", "TTS_COMPILE_CONFIG", "TTS_COMPILE_CACHE_DIR"):
            patch.delenv(name, raising=False)
        patch.setenv("HF_HUB_OFFLINE", "1")
        # One folder for all workers, kept for the next run; never the user's own.
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", f"{tempfile.gettempdir()}/tts-compile-tests-{getpass.getuser()}")
        cache.folder()  # looks at the machine once, before a test pretends that it is another
        yield


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tc.testing.write_checkpoint(tmp_path_factory.mktemp("checkpoint"), size="small", speech_tokens=SPEECH_TOKENS)


@pytest.fixture(scope="session")
def model(checkpoint: Path) -> Any:
    """The stock model; ask for ``tts`` instead."""
    return tc.testing.load_checkpoint(checkpoint)


@pytest.fixture
def tts(model: Any) -> Iterator[Any]:
    """The stock model, whose instances, voice and modes are put back after the test whatever happened."""
    owners = (
        *(model, model.t3, model.s3gen, model.s3gen.flow, model.s3gen.mel2wav),
        *(model.ve, model.tokenizer, model.watermarker),
    )
    before = [dict(vars(owner)) for owner in owners]
    voice = dict(vars(model.conds))
    yield model
    for owner, attributes in zip(owners, before):
        for name in vars(owner).keys() - attributes.keys():
            del vars(owner)[name]
        vars(owner).update(attributes)
    vars(model.conds).update(voice)
    for module in (model.t3, model.s3gen, model.ve):
        module.eval()


@pytest.fixture
def eager(tts: Any) -> tc.CompiledTTS:
    """The library's own loop around ``tts``, not compiled."""
    return tc.compile_model(tts, EAGER)


@pytest.fixture(scope="session")
def fast(checkpoint: Path) -> Iterator[tc.CompiledTTS]:
    """A compiled and warmed-up model; not for tests that leave a mark on its counts of compiled steps."""
    torch._dynamo.reset()  # or graphs compiled by an earlier test would serve this model and not be counted
    with tc.testing.architecture_of(checkpoint):
        mapped = tc.load_model("ChatterboxTTS", checkpoint)  # whose weights lie anywhere in memory
    with tc.compile_model(mapped, tc.CompileConfig.exact()) as handle:
        handle.warmup()
        yield handle


def forget_failures(handle: tc.CompiledTTS) -> None:
    """Have the components of a model that several tests share be as if nothing had ever failed."""
    for name in handle._components:
        component = handle._components[name]
        if isinstance(component, EngineComponent):
            component._failed_together = 0
        fallback = component.fallback
        fallback.events.clear()
        fallback._failures.clear()
        fallback._first, fallback.level = 0, fallback.chain[0]


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> PretendRecorder:
    """Models compiled from now on find CUDA graphs, pretended, where they are."""
    return pretend(monkeypatch)


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    """No graph of another test serves this one; the graphs of ``fast`` are lost too, so such tests run last."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: "fresh_dynamo" in getattr(item, "fixturenames", ()))
    for item in items:  # one worker compiles ``fast``, which some tests ask for by name; the others share files
        fixtures = getattr(item, "fixturenames", ())
        item.add_marker(pytest.mark.xdist_group("fast" if {"fast", "request"} & {*fixtures} else item.path.stem))


@pytest.fixture(scope="session")
def stock_speech(model: Any) -> Callable[..., Speech]:
    """``speak_stock`` on ``model``, computed once for each text, seed and settings."""
    known: dict[Any, Speech] = {}

    def speech(text: str, seed: int = 0, **settings: Any) -> Speech:
        key = (text, seed, *sorted(settings.items()))
        if key not in known:
            known[key] = speak_stock(model, text, seed, **settings)
        return known[key]

    return speech


@pytest.fixture(scope="session")
def stock_wave(model: Any) -> Callable[..., tuple[Tensor, Any]]:
    """Stock ``generate``: the wave and the random generators after it, computed once for each text and seed."""
    known: dict[Any, tuple[Tensor, Any]] = {}

    def wave(text: str, seed: int = 0) -> tuple[Tensor, Any]:
        assert "inference" not in vars(model.t3)
        if (text, seed) not in known:
            seed_everything(seed)
            known[text, seed] = model.generate(text), random_states()
        return known[text, seed]

    return wave


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], list[tuple[int, ...]]]:
    """Spare a model the synthesis: afterwards ``generate`` is quick, and its speech tokens land in the list."""

    def silence(tts: Any) -> list[tuple[int, ...]]:
        heard: list[tuple[int, ...]] = []

        def inference(speech_tokens: Tensor, ref_dict: Any) -> tuple[Tensor, None]:
            heard.append(tuple(speech_tokens.tolist()))
            return torch.zeros(1, 4800), None

        monkeypatch.setattr(tts.s3gen, "inference", inference)
        return heard

    return silence
