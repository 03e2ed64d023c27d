"""One thread speaks at a time, forked processes are refused, and handles cannot be pickled."""

from __future__ import annotations

import contextlib
import os
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

import tts_compile as tc
from conftest import EAGER, components
from speech import SHORT, TEXTS
from tts_compile import background
from tts_compile.execution.process_lock import ProcessLock


def test_every_thread_hears_what_it_would_hear_alone(
    eager: tc.CompiledTTS, silent: Callable[[Any], list[tuple[int, ...]]]
) -> None:
    spoken = silent(eager)
    wanted = {}
    texts = ["A", SHORT, "Who goes there?"]
    for seed, text in enumerate(texts):
        with eager.seeded(seed):
            eager.generate(text)
        wanted[seed] = spoken[-1]
    torch.manual_seed(1)
    eager.generate(texts[1])
    assert spoken[-1] == wanted[1]  # as with torch.manual_seed
    state = torch.get_rng_state()

    def speak(number: int) -> tuple[int, tuple[int, ...]]:
        seed = number % len(texts)
        with eager.seeded(seed):
            eager.generate(texts[seed])
            return seed, spoken[-1]

    with ThreadPoolExecutor(4) as threads:
        for seed, tokens in threads.map(speak, range(9)):
            assert tokens == wanted[seed]
    assert torch.equal(torch.get_rng_state(), state)


def test_a_seed_is_its_threads_own(eager: tc.CompiledTTS) -> None:
    def draw(seed: int) -> list[float]:
        drawn = []
        with eager.seeded(seed):
            for _ in range(2):
                drawn.append(float(torch.rand(())))
                threading.Event().wait(0.01)
        return drawn

    state = torch.get_rng_state()
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(draw, range(4)))
    assert found == [draw(seed) for seed in range(4)]
    assert torch.equal(torch.get_rng_state(), state)


def test_two_models_take_turns(eager: tc.CompiledTTS, traced: tc.CompiledTTS, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, most = [0], [0]

    def generate(*args: Any, **kwargs: Any) -> torch.Tensor:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        threading.Event().wait(0.05)
        inside[0] -= 1
        return torch.zeros(1, 1)

    for handle in (eager, traced):
        monkeypatch.setattr(handle.wrapped, "generate", generate)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda handle: handle.generate(SHORT), [eager, traced] * 3))
    assert most[0] == 1


@pytest.mark.parametrize("state", ["eager", "off", "restored"])
def test_turns_hold_for_seeds_that_are_drawn(tts: Any, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tc.CompileConfig.off() if state == "off" else EAGER
    speaking, drawn = threading.Event(), []

    def generate(text: str, *args: Any, **kwargs: Any) -> torch.Tensor:
        drawn.append(torch.rand(()))
        speaking.set()
        threading.Event().wait(0.1)
        drawn.append(torch.rand(()))
        return torch.zeros(1, 1)

    with tc.compile_model(tts, config) as handle:
        if state == "restored":
            handle.restore()
        with handle.seeded(3):
            expected = [torch.rand(()) for _ in range(2)]
        monkeypatch.setattr(tts, "generate", generate)

        def speak() -> None:
            with handle.seeded(3):
                handle.generate(SHORT)

        thread = threading.Thread(target=speak)
        thread.start()
        speaking.wait()
        handle.generate_batch([SHORT])
        thread.join()
        monkeypatch.undo()
    assert drawn[:2] == expected


def test_threads_that_compile_one_model_share_a_handle(tts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "start", lambda *args: threading.Event().wait(0.02) or None)  # others come in
    with ThreadPoolExecutor(4) as threads:
        handles = set(threads.map(lambda _: id(tc.compile_model(tts, EAGER)), range(4)))
    assert len(handles) == 1


def test_a_manager_in_two_threads() -> None:
    manager = tc.FallbackManager("t3", ["fast", "plain"], max_failures=100)
    inside, go_on = threading.Event(), threading.Event()

    def broken() -> None:
        raise RuntimeError("broken")

    def plain() -> None:
        inside.set()
        go_on.wait()

    first = threading.Thread(target=manager.run, args=({"fast": broken, "plain": plain},))
    found: list[str] = []
    second = threading.Thread(
        target=lambda: found.append(manager.run({"fast": lambda: "fast", "plain": lambda: "plain"}))
    )
    first.start()
    inside.wait()
    second.start()
    go_on.set()
    first.join()
    second.join()
    assert (found, manager.level) == (["fast"], "fast")


@pytest.mark.parametrize("call", ["stock", "restore"])
def test_stock_waits_for_an_utterance_under_way(
    eager: tc.CompiledTTS, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    speaking, seen = threading.Event(), []

    def generate(*args: Any, **kwargs: Any) -> torch.Tensor:
        speaking.set()
        threading.Event().wait(0.1)
        seen.append("inference" in vars(eager.t3))
        return torch.zeros(1, 1)

    monkeypatch.setattr(eager.wrapped, "generate", generate)
    thread = threading.Thread(target=eager.generate, args=(SHORT,))
    thread.start()
    speaking.wait()
    with eager.stock() if call == "stock" else contextlib.nullcontext(eager.restore()):
        assert seen == [True]
    thread.join()
    monkeypatch.undo()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_fork_is_refused_and_does_not_hang(eager: tc.CompiledTTS) -> None:
    reading, writing = os.pipe()
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with eager.seeded(0):  # the lock is held by a thread that is not forked along
            held.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    child = os.fork()
    if child == 0:
        said = []
        for call in (
            lambda: eager.generate(SHORT),
            lambda: eager.generate_batch([SHORT]),
            eager.warmup,
            lambda: eager.t3.inference(),
            lambda: eager.wrapped.s3gen.flow.inference(),
            lambda: components(eager)["t3"].warm_up(),
        ):
            try:
                call()
            except tc.ModelStateError as error:
                said.append(str("spawn" in str(error)))
            except BaseException as error:
                said.append(repr(error))
        eager.restore()
        said.append(str("inference" not in vars(eager.t3)))
        off = tc.compile_model(eager.wrapped, tc.CompileConfig.off())
        eager.wrapped.generate = lambda text: "stock"
        said += [str(handle.generate(SHORT) == "stock") for handle in (eager, off)]
        os.write(writing, ",".join(said).encode())
        os._exit(0)
    done.set()
    thread.join()
    os.waitpid(child, 0)
    assert os.read(reading, 10_000) == b",".join([b"True"] * 9)
    os.close(reading)
    os.close(writing)


def test_a_model_that_stays_stock_minds_no_fork(tts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with tc.compile_model(tts, tc.CompileConfig.off()) as off:
        monkeypatch.setattr(tts, "generate", lambda *args, **kwargs: "stock")
        monkeypatch.setattr(os, "getpid", lambda: -1)
        assert off.generate(SHORT) == "stock"


def test_a_handle_is_not_pickled_and_its_config_is(eager: tc.CompiledTTS) -> None:
    for thing in (eager, [eager]):
        with pytest.raises(tc.ModelStateError, match="pickle its config"):
            pickle.dumps(thing)
    config = pickle.loads(pickle.dumps(eager.config))
    assert config == eager.config
    model = eager.wrapped
    eager.restore()
    with tc.compile_model(model, config) as again:
        assert again.config == EAGER


@pytest.mark.parametrize("seed", [1.5, "one", 2**64, None])
def test_what_is_no_seed(eager: tc.CompiledTTS, seed: Any) -> None:
    with pytest.raises(tc.InputError, match="seed"), eager.seeded(seed):
        pass


def test_the_lock_nests() -> None:
    lock = ProcessLock()
    with lock(), lock(), ProcessLock()():
        pass


def test_long_texts_are_seeded_alike(eager: tc.CompiledTTS, silent: Callable[[Any], list[tuple[int, ...]]]) -> None:
    spoken = silent(eager)
    with eager.seeded(3):
        eager.generate(TEXTS[120])
    eager.generate_batch([TEXTS[120]], seeds=[3])
    assert spoken[0] == spoken[1]
