"""Checkpoints, models and stock results that tests share; each is made once a session.

``model`` is stock, and tests attach to it through ``tts``. ``fast`` is compiled by inductor and ``traced`` by dynamo
alone, so that compiling is paid for once; both stay compiled.
"""

from __future__ import annotations

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # one thread for each worker: the workers share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import getpass
import importlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from torch import Tensor

import tts_compile as tc
from pretend import BREAKABLE, PretendRecorder, pretend
from speech import Speech, random_states, seed_everything, speak_stock
from stages import Made, Stage, tokens
from tts_compile import cache
from tts_compile.attachment import Attachment
from tts_compile.components.compiled_component import CompiledComponent
from tts_compile.execution.native import build

SPEECH_TOKENS = 10
ENGINES = ("t3", "flow", "vocoder")
EAGER = tc.CompileConfig(**dict.fromkeys(ENGINES, tc.ComponentPolicy(execution="eager")), warmup_samples=0)


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
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Returns the folder of a variant's small checkpoint, written once for all workers; read it, never write to it."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def folder(variant: str = "english") -> Path:
        found, partial = shared / f"checkpoint-{variant}", shared / f"partial-{variant}"
        with FileLock(f"{partial}.lock"):
            if not found.exists():
                tc.testing.write_checkpoint(partial, variant, speech_tokens=SPEECH_TOKENS).rename(found)
        return found

    return folder


@pytest.fixture(scope="session")
def checkpoint(checkpoint_of: Callable[[str], Path]) -> Path:
    """The folder of the English checkpoint."""
    return checkpoint_of("english")


@pytest.fixture(scope="session")
def model(checkpoint: Path) -> Any:
    """The stock model; ask for ``tts`` instead."""
    return tc.testing.load_checkpoint(checkpoint)


@pytest.fixture
def tts(model: Any) -> Iterator[Any]:
    """The stock model; instances, voice and modes are put back after the test, whatever happened."""
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
def few_tokens(tts: Any) -> Iterator[None]:
    """A stock T3 that gives a few tokens at once, and a short voice for comparisons: each utterance takes no time."""
    module = importlib.import_module("tts_compile.parity.measure")  # a function of the package has its name
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tts.t3, "inference", lambda **_: tokens(6))
        patch.setattr(module, "make_reference_wav", lambda path, seconds: tc.testing.make_reference_wav(path, 2))
        yield


@pytest.fixture
def eager(tts: Any) -> tc.CompiledTTS:
    """The library's own loops around ``tts``, not compiled."""
    return tc.compile_model(tts, EAGER)


def mapped(checkpoint: Path) -> Any:
    """Loads a model of its own, whose weights lie anywhere in memory; faster than stock's loading."""
    with tc.testing.architecture_of(checkpoint):
        return tc.load_model("ChatterboxTTS", checkpoint)


@pytest.fixture(scope="session")
def fast(checkpoint: Path) -> Iterator[tc.CompiledTTS]:
    """A compiled and warmed-up model; not for tests that leave a mark on its counts of compiled steps."""
    torch._dynamo.reset()  # or graphs compiled by an earlier test would serve this model and not be counted
    with tc.compile_model(mapped(checkpoint), tc.CompileConfig.exact()) as handle:
        handle.warmup()
        yield handle


@pytest.fixture(scope="session")
def _traced(checkpoint: Path) -> Iterator[tc.CompiledTTS]:
    policy = tc.ComponentPolicy(execution="inductor", backend=BREAKABLE.name)
    with tc.compile_model(mapped(checkpoint), tc.CompileConfig(**dict.fromkeys(ENGINES, policy))) as handle:
        yield handle


@pytest.fixture
def traced(_traced: tc.CompiledTTS) -> tc.CompiledTTS:
    """A model that dynamo traces once for all tests, as if nothing had ever failed; ``BREAKABLE`` makes it fail."""
    forget_failures(_traced)
    return _traced


@pytest.fixture(params=["fast", "traced", "eager"])
def speaker(request: pytest.FixtureRequest) -> tc.CompiledTTS:
    """A model compiled by inductor, traced with native code, or run eagerly with torch's own operators."""
    handle: tc.CompiledTTS = request.getfixturevalue(request.param)
    return handle


def attachment_of(handle: tc.CompiledTTS) -> Attachment:
    """Returns the attachment of a compiled model."""
    return handle._attachment


def components(handle: tc.CompiledTTS) -> Any:
    """Returns the components of a compiled model, by name."""
    return attachment_of(handle).components


def forget_failures(handle: tc.CompiledTTS) -> None:
    """Puts the components of a model that several tests share back to the state before any failure."""
    for name in components(handle):
        component = components(handle)[name]
        if isinstance(component, CompiledComponent):
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
def built(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes native code that other tests have built, whatever the cache folder."""
    load = build.load_library
    monkeypatch.setattr(build, "load_library", lambda name, cache_dir=None: load(name))


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    """No graph of another test serves this one; the graphs of ``fast`` are lost too, so such tests run last."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Has one worker run all tests of ``fast``, first, since they take longest; other tests of a file stay together."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group("fast" if _asks_for_fast(item) else item.path.stem))
    items.sort(key=lambda item: ("fresh_dynamo" in getattr(item, "fixturenames", ()), not _asks_for_fast(item)))


def _asks_for_fast(item: pytest.Item) -> bool:
    """Whether a test asks for ``fast``, as a fixture or as the value of a parameter that names it."""
    parameters = getattr(item, "callspec", None)
    named = parameters.params.values() if parameters else ()
    return "fast" in getattr(item, "fixturenames", ()) or any(
        isinstance(value, str) and value == "fast" for value in named
    )


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


@pytest.fixture(scope="session")
def stock_made(model: Any) -> Callable[..., Made]:
    """``Stage.stock`` on ``model``, computed once for each length and plain settings."""
    known: dict[Any, Made] = {}

    def made(stage: Stage, length: int = 9, **settings: Any) -> Made:
        key = (stage.name, length, *sorted(settings.items()))
        if key not in known:
            known[key] = stage.stock(model, length, **settings)
        return known[key]

    return made


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], list[tuple[int, ...]]]:
    """Replaces a model's synthesis: afterwards ``generate`` is quick, and its speech tokens land in the list."""

    def silence(tts: Any) -> list[tuple[int, ...]]:
        spoken: list[tuple[int, ...]] = []

        def inference(speech_tokens: Tensor, ref_dict: Any) -> tuple[Tensor, None]:
            spoken.append(tuple(speech_tokens.tolist()))
            return torch.full((1, 4800), len(spoken) - 1.0), None

        monkeypatch.setattr(tts.s3gen, "inference", inference)
        return spoken

    return silence
