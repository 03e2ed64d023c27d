"""Budgets of time and memory, compiling in another process, and the machine's memory as a last level."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor, nn

import tts_compile as tc
from conftest import EAGER, ENGINES, attachment_of, components
from speech import SHORT, Speech, random_states, seed_everything, signal_to_error_db, speak
from stages import FLOW, QUICK, Made, assert_alike
from test_faults import EAGER_ONES
from tts_compile import _compat, attachment, background, background_worker, cache
from tts_compile.components import cpu_fallback, runtime
from tts_compile.components.flow import FlowComponent
from tts_compile.components.t3 import T3Component
from tts_compile.components.t3.decode_loop import DecodeLoop
from tts_compile.components.vocoder import VocoderComponent
from tts_compile.execution import CompileOptions, Region
from tts_compile.execution.memory_limit import MemoryLimit
from tts_compile.execution.region import CompileBudget
from tts_compile.families.english import ENGLISH

GIB = 2**30
ONE = torch.ones(1)
CPU = torch.device("cpu")


@pytest.mark.usefixtures("fresh_dynamo")
def test_once_the_budget_is_spent_nothing_new_is_compiled() -> None:
    def slowly(graph: Any, inputs: Any) -> Any:
        time.sleep(0.05)
        return graph.forward

    budget = CompileBudget(0.05)
    manager = tc.FallbackManager("t3", ["inductor", "eager"])
    first, second = (
        Region(name, lambda x: x * 2, manager, CPU, CompileOptions(slowly), budget) for name in ("first", "second")
    )
    spent = []
    for _ in range(3):
        assert torch.equal(first(torch.ones(4)), torch.full((4,), 2.0))
        spent.append(budget.spent)
    assert spent == [budget.spent] * 3  # by compiling alone
    assert budget.spent >= 0.05
    for _ in range(2):
        assert torch.equal(second(torch.ones(4)), torch.full((4,), 2.0))
    assert (first.compiled_calls, first.eager_calls) == (3, 0)  # compiled code is still used
    assert (second.compiled_calls, second.eager_calls, second.graphs) == (0, 2, 0)
    assert first(torch.ones(4, 4)).sum() == 32  # another shape would be another graph
    assert (first.graphs, first.eager_calls) == (1, 1)
    (event,) = manager.events
    assert (event.phase, event.action) == ("compile", "what is not compiled yet runs eagerly")
    assert "the budget is 0.05 s" in event.error
    with pytest.raises(tc.CompilationError, match="budget"):
        budget.enforced(tc.FallbackManager("flow", ["inductor", "eager"], policy="raise"))


@pytest.mark.usefixtures("fresh_dynamo")
def test_what_fails_to_compile_has_spent_its_time_too() -> None:
    def slowly(graph: Any, inputs: Any) -> Any:
        time.sleep(0.05)
        raise RuntimeError("broken")

    budget = CompileBudget(1)
    manager = tc.FallbackManager("t3", ["inductor", "eager"])
    assert torch.equal(Region("f", lambda x: x * 2, manager, CPU, CompileOptions(slowly), budget)(ONE), ONE * 2)
    assert budget.spent >= 0.05
    assert [event.phase for event in manager.events] == ["compile"]


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize(
    "error", [MemoryError("none left"), torch.OutOfMemoryError("CUDA out of memory"), KeyboardInterrupt()]
)
def test_running_out_of_memory_or_an_interrupt_spends_nothing(error: BaseException) -> None:
    def slowly(graph: Any, inputs: Any) -> Any:
        def run(*args: Any) -> Any:
            time.sleep(0.05)
            raise error

        return run

    budget = CompileBudget(1)
    region = Region("f", lambda x: x * 2, tc.FallbackManager("t3", ["inductor"]), CPU, CompileOptions(slowly), budget)
    spent = []
    for _ in range(2):  # the first call compiles
        with pytest.raises(type(error)):
            region(ONE)
        spent.append(budget.spent)
    assert spent[0] == spent[1]


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("error", [MemoryError("none left"), KeyboardInterrupt()])
def test_compiling_that_is_broken_off_spends_nothing(error: BaseException) -> None:
    def slowly(graph: Any, inputs: Any) -> Any:
        time.sleep(0.05)
        raise error

    budget = CompileBudget(1)
    region = Region("f", lambda x: x * 2, tc.FallbackManager("t3", ["inductor"]), CPU, CompileOptions(slowly), budget)
    with pytest.raises(BaseException, match="none left" if isinstance(error, MemoryError) else ""):
        region(ONE)
    assert budget.spent == 0


def test_the_budget_of_a_model(tts: Any, stock_speech: Callable[..., Speech]) -> None:
    config = tc.CompileConfig.off().replace(t3=QUICK, flow=QUICK, compile_seconds=1e-9)
    with tc.compile_model(tts, config) as fast:
        assert speak(fast, SHORT, 1, max_new_tokens=6) == stock_speech(SHORT, 1, max_new_tokens=6)
        FLOW.call(fast, 12)
        rows = [fast.report().components[name] for name in ("t3", "flow")]
    for row in rows:
        assert row.ran == "eager"
        assert [event.action for event in row.fallbacks] == ["what is not compiled yet runs eagerly"]
    assert rows[0].graphs <= 1  # the graph that spent the budget
    assert rows[1].graphs == 0


def test_room_within_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tts_compile.execution.memory_limit.held_memory", lambda device: 4 * GIB)
    monkeypatch.setattr("tts_compile.execution.memory_limit.free_memory", lambda device: 10 * GIB)
    limit = MemoryLimit(CPU, 6.5)
    assert limit.room() == int(2.5 * GIB)
    limit.check(int(2.5 * GIB))
    with pytest.raises(tc.OutOfMemoryError, match=r"2.60 GiB more would exceed the limit of 6.5 GiB: 4.00 GiB"):
        limit.check(int(2.6 * GIB))
    assert MemoryLimit(CPU).room() == 10 * GIB
    assert MemoryLimit(CPU).refused(2**60) is None
    monkeypatch.setattr("tts_compile.execution.memory_limit.free_memory", lambda device: GIB)
    assert limit.room() == GIB


def test_beyond_the_limit_nothing_is_kept_twice(
    tts: Any, silent: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with tc.compile_model(tts, tc.CompileConfig(memory_limit_gb=0.01)) as fast:
        rows = fast.report().components
        assert [event.action for event in rows["t3"].fallbacks] == ["no draft tokens"]
        for name in ("flow", "vocoder"):
            assert [event.phase for event in rows[name].fallbacks] == ["attach"]
            assert "limit of 0.01 GiB" in rows[name].fallbacks[0].error
        passes: list[int] = []
        advance = DecodeLoop.advance
        monkeypatch.setattr(
            DecodeLoop,
            "advance",
            lambda self, *given, **kw: (passes.append(len(self.active)), advance(self, *given, **kw)),
        )
        silent(tts)
        fast.generate_batch(["A", SHORT, "B"])
        assert max(passes) == 1


def test_no_recording_beyond_the_limit(tts: Any, recorder: Any, stock_speech: Callable[..., Speech]) -> None:
    config = tc.CompileConfig.off().replace(
        t3=tc.ComponentPolicy(execution="cuda_graph", backend="eager"), memory_limit_gb=0.01
    )
    with tc.compile_model(tts, config) as fast:
        assert speak(fast, SHORT, 1, max_new_tokens=6) == stock_speech(SHORT, 1, max_new_tokens=6)
        found = [(event.phase, event.action) for event in fast.report().components["t3"].fallbacks]
    assert found == [
        ("memory", "cuda_graph again, after releasing memory"),
        ("memory", "inductor instead of cuda_graph"),
    ]
    assert recorder.recorded == []


def test_the_machines_memory_as_a_last_level(
    tts: Any,
    monkeypatch: pytest.MonkeyPatch,
    stock_speech: Callable[..., Speech],
    stock_made: Callable[..., Made],
) -> None:
    expected = stock_speech(SHORT, 1, max_new_tokens=6), stock_made(FLOW, 12)

    def short(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    def stock_runs_short(owner: nn.Module) -> None:  # a copy does not
        kind: Any = type(owner)
        inference = kind.inference

        @functools.wraps(inference)
        def inference_or_short(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return short() if self is owner else inference(self, *args, **kwargs)

        monkeypatch.setattr(kind, "inference", inference_or_short)

    for owner in (tts.t3, tts.s3gen.flow):
        stock_runs_short(owner)
    monkeypatch.setattr(runtime, "CPU", torch.device("cuda"))  # as if the model were on another device
    with tc.compile_model(tts, EAGER.replace(cpu_fallback=True)) as fast:
        for name in ("t3", "flow"):
            component = components(fast)[name]
            assert component.fallback.chain == ("eager", "stock", "cpu")
            monkeypatch.setattr(component.engine, "inference", short)
        assert speak(fast, SHORT, 1, max_new_tokens=6) == expected[0]
        assert_alike(FLOW.call(fast, 12), expected[1])
        row = FLOW.row(fast)
        actions = [event.action for event in row.fallbacks]
    assert "utterances left to stock: 1" in row.note
    assert actions[-2:] == ["stock instead of eager", "cpu instead of stock"]


class Looked(nn.Sequential):
    """A module that shows what it holds."""

    def look(self) -> list[Any]:
        return [[type(part) for part in self], [(value.data_ptr(), value) for value in self.state_dict().values()]]


def test_a_module_is_copied_without_its_device() -> None:
    module = Looked(nn.Linear(2, 2), nn.BatchNorm1d(2)).eval()
    kinds, copied = cpu_fallback.on_cpu(module, "look")
    assert kinds == [nn.Linear, nn.BatchNorm1d]
    for (address, mine), its in zip(copied, module.state_dict().values()):
        assert torch.equal(mine, its)
        assert address != its.data_ptr()
    tensor = torch.ones(2)
    assert cpu_fallback.moved({"a": (tensor, [1, None])}, CPU) == {"a": (tensor, [1, None])}


def test_nothing_is_taken_of_the_device_for_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    def taken(tensor: Tensor, memo: Any) -> None:
        pytest.fail("copied where it is")

    module = Looked(nn.Linear(2, 2), nn.BatchNorm1d(2))
    for kind in (nn.Parameter, Tensor):
        monkeypatch.setattr(kind, "__deepcopy__", taken)
    cpu_fallback.on_cpu(module, "look")


@dataclasses.dataclass
class Held:
    tensor: Tensor


def test_what_goes_to_a_copy_and_what_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    meta, seen = torch.device("meta"), []  # for a GPU
    found = cpu_fallback.moved({"a": (Held(torch.ones(2)), [torch.ones(2)])}, meta)
    assert (found["a"][0].tensor.device, found["a"][1][0].device) == (meta, meta)
    moved = cpu_fallback.moved
    monkeypatch.setattr(
        cpu_fallback, "moved", lambda value, device: seen.append((type(value), device)) or moved(value, device)
    )
    monkeypatch.setattr(cpu_fallback, "_copied", lambda owner: nn.Linear(2, 2))
    assert cpu_fallback.on_cpu(nn.Linear(2, 2, device=meta), "forward", torch.ones(1, 2)).device == meta
    assert [pair for pair in seen if pair[0] in (tuple, dict)] == [(tuple, CPU), (dict, CPU)]


def test_another_process_compiles_while_this_one_speaks(
    tts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stock_speech: Callable[..., Speech]
) -> None:
    (tmp_path / "cache").mkdir(mode=0o700)
    config = tc.CompileConfig.off().replace(
        t3=QUICK, warmup_samples=0, compile_in_background=True, cache_dir=str(tmp_path / "cache")
    )
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    before = tts.t3.speech_head.weight.data_ptr()
    with tc.compile_model(tts, config) as fast:
        running = process_of(fast)
        assert running.running
        assert speak(fast, SHORT, 1, max_new_tokens=6) == stock_speech(SHORT, 1, max_new_tokens=6)
        row = fast.report().components["t3"]
        assert (row.asked, row.ran, row.graphs) == ("inductor", "eager", 0)
        assert "another process is compiling" in row.note
        fast.warmup()  # waits for it
        assert process_of(fast) is None
        assert not running.running
        assert speak(fast, SHORT, 1, max_new_tokens=6) == stock_speech(SHORT, 1, max_new_tokens=6)
        row = fast.report().components["t3"]
        assert row.ran == "inductor"
        assert "calls ran eager while another process compiled" in row.note
        assert row.fallbacks == ()
    assert tts.t3.speech_head.weight.data_ptr() == before
    assert list(
        (cache.folder(str(tmp_path / "cache")) / cache.OWN_FOLDER).glob("llama_decoder-*.so")
    )  # built by the other process


def test_what_reaches_another_process_is_fit_to_be_compiled(
    tts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrived: list[Any] = []
    config = tc.CompileConfig.exact().replace(**dict.fromkeys(ENGINES, QUICK), compile_in_background=True)
    monkeypatch.setattr(background.sys, "executable", "/bin/true")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    running = background.BackgroundCompilation(tts, ENGLISH, config)
    (payload,) = tmp_path.glob("temporary/*/payload")
    assert payload.stat().st_size < sum(weight.nbytes for weight in tts.t3.parameters()) / 4  # buffers and no weights
    with monkeypatch.context() as patch:
        warmed = types.SimpleNamespace(warmup=lambda: arrived.append("warmed up"))
        patch.setattr(background_worker, "compile_model", lambda *given: arrived.extend(given) or warmed)
        patch.setattr(torch, "set_num_threads", arrived.append)
        background_worker.main(str(payload))
    running.stop()
    threads, other, its_config, end = arrived
    assert (threads, end) == (torch.get_num_threads(), "warmed up")
    assert (its_config.t3, its_config.fallback, its_config.compile_in_background) == (QUICK, "raise", False)
    with (
        tc.compile_model(tts, config.replace(compile_in_background=False)),
        tc.compile_model(other, its_config) as there,
    ):
        for name in ENGINES:
            assert components(there)[name].left_to_stock() is None, name


def test_what_is_not_compiled_in_another_process(tts: Any, caplog: pytest.LogCaptureFixture) -> None:
    config = tc.CompileConfig.off().replace(compile_in_background=True)
    assert background.start(tts, ENGLISH, config) is None  # nothing to compile
    config = config.replace(t3=QUICK)
    meta = nn.Linear(1, 1, device="meta")
    elsewhere = types.SimpleNamespace(t3=meta, s3gen=meta)
    assert background.start(elsewhere, ENGLISH, config) is None
    assert caplog.text == ""
    tts.t3.somebodys = lambda: None  # a lambda cannot be pickled
    assert background.start(tts, ENGLISH, config) is None
    assert "nothing is compiled in the background" in caplog.text


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_dynamo")
def test_what_inductor_compiles_in_another_process_is_found_here(
    tts: Any, tmp_path: Path, stock_speech: Callable[..., Speech], stock_wave: Callable[..., tuple[Tensor, Any]]
) -> None:
    wave, states = stock_wave(SHORT, 1)

    def spoken_as_stock() -> None:
        seed_everything(1)
        assert signal_to_error_db(wave, fast.generate(SHORT)) >= 60
        assert random_states() == states

    cache = tmp_path / "cache"
    cache.mkdir(mode=0o700)
    config = tc.CompileConfig.exact().replace(compile_in_background=True, cache_dir=str(cache))
    with tc.compile_model(tts, config) as fast:
        running, meanwhile = process_of(fast), components(fast)
        spoken_as_stock()
        assert running.running
        assert {fast.report().components[name].graphs for name in ENGINES} == {0}
        while running.running:
            time.sleep(1)
        compiled = {*cache.rglob("*.so")}
        assert components(fast) is meanwhile  # until the next utterance
        _compat.dynamo_counters().clear()
        spoken_as_stock()
        assert components(fast) is not meanwhile
        fast.warmup()
        assert speak(fast, SHORT, 1, max_new_tokens=6) == stock_speech(SHORT, 1, max_new_tokens=6)
        rows = fast.report().components
        found = dict(_compat.dynamo_counters()["inductor"])
    for name in ENGINES:
        row = rows[name]
        assert (row.ran, row.compiled_calls, row.fallbacks) == ("inductor", row.calls, ())
    assert {*cache.rglob("*.so")} == compiled  # no compiler was called
    assert found["fxgraph_cache_hit"] > 0


def test_what_fails_in_another_process_does_no_harm(
    tts: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    stock_speech: Callable[..., Speech],
) -> None:
    monkeypatch.setattr(background.sys, "executable", "/bin/false")
    config = tc.CompileConfig.off().replace(t3=QUICK, compile_in_background=True, warmup_samples=0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with tc.compile_model(tts, config) as fast:
        running = process_of(fast)
        while running.running:
            time.sleep(0.01)
        assert speak(fast, SHORT, 1, max_new_tokens=6) == stock_speech(SHORT, 1, max_new_tokens=6)
        fast.warmup()
        running.wait()
        assert caplog.text.count("compiling in the background failed: exit status 1") == 1
        assert not any(tmp_path.iterdir())
        assert fast.report().components["t3"].graphs > 0


@pytest.mark.parametrize("said", ["first\nthe last word", ""])
def test_the_last_word_of_another_process_is_logged(
    tts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, said: str
) -> None:
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\nprintf '{said}'\nexit 3\n")
    program.chmod(0o700)
    monkeypatch.setattr(background.sys, "executable", str(program))
    background.BackgroundCompilation(tts, ENGLISH, EAGER).wait()
    assert f"failed: {said.splitlines()[-1] if said else 'exit status 3'}" in caplog.text


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_model_that_is_not_compiled_leaves_no_process(
    tts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    children = psutil.Process().children()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    started = []
    start = background.start

    def broken(*args: Any) -> None:
        raise error

    monkeypatch.setattr(background, "start", lambda *args: started.append(start(*args)) or started[0])
    monkeypatch.setattr(attachment, "ComponentSet", broken)
    with pytest.raises(error):
        tc.compile_model(tts, tc.CompileConfig.off().replace(t3=QUICK, compile_in_background=True))
    assert not started[0].running
    assert psutil.Process().children() == children  # and waited for
    assert not any(tmp_path.iterdir())


class Ended:
    """A stand-in for the other process, which has ended or has not."""

    def __init__(self) -> None:
        self.running = False
        self.waited = 0

    def wait(self) -> None:
        self.waited += 1
        self.running = False

    def stop(self) -> None:
        pass


@pytest.fixture
def switching(tts: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A model that uses the compiled code as soon as the stand-in has ended."""
    monkeypatch.setattr(background, "start", lambda *args: Ended())
    config = tc.CompileConfig.off().replace(t3=QUICK, compile_in_background=True, warmup_samples=0)
    with tc.compile_model(tts, config) as fast:
        yield fast


def process_of(handle: tc.CompiledTTS) -> Any:
    """Returns the process that compiles for a model in the background; None where there is none any more."""
    return attachment_of(handle).background


CALLS: dict[str, tuple[Any, ...]] = {"generate": (SHORT,), "generate_batch": ([SHORT],), "warmup": ()}


@pytest.mark.parametrize("call", CALLS)
def test_every_call_switches_once(switching: Any, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    running, before = process_of(switching), components(switching)
    monkeypatch.setattr(switching.wrapped, "generate", lambda *args, **kwargs: torch.zeros(1, 1))
    monkeypatch.setattr(T3Component, "warm_up", lambda self: None)
    for is_running in (True, False, False):
        running.running = is_running
        getattr(switching, call)(*CALLS[call])
        waits = not is_running or call == "warmup"
        assert (components(switching) is before) == (not waits)
        assert (process_of(switching) is None) == waits
        assert running.waited == waits
    assert switching.report().components["t3"].asked == "inductor"


def test_a_restored_model_does_not_switch(switching: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    running, before = process_of(switching), components(switching)
    monkeypatch.setattr(switching.wrapped, "generate", lambda *args, **kwargs: torch.zeros(1, 1))
    with switching.stock():
        switching.generate(SHORT)
        assert process_of(switching) is running
        assert "inference" not in vars(switching.t3)
    assert components(switching) is before


@pytest.mark.parametrize("call", CALLS)
def test_it_switches_between_two_utterances(switching: Any, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    speaking, begun, seen = threading.Event(), threading.Event(), []
    before, running = components(switching), process_of(switching)
    running.running = True
    component_set = attachment.ComponentSet

    def generate(*args: Any, **kwargs: Any) -> Tensor:
        speaking.set()
        seen.append(begun.wait(0.2))
        return torch.zeros(1, 1)

    monkeypatch.setattr(switching.wrapped, "generate", generate)
    monkeypatch.setattr(attachment, "ComponentSet", lambda *args: (begun.set(), component_set(*args))[1])
    monkeypatch.setattr(T3Component, "warm_up", lambda self: None)
    thread = threading.Thread(target=switching.generate, args=(SHORT,))
    thread.start()
    speaking.wait()
    running.running = False
    getattr(switching, call)(*CALLS[call])
    thread.join()
    assert components(switching) is not before
    assert seen == [False, True][: 1 if call == "warmup" else 2]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_switch_that_fails_is_made_later(
    switching: Any, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    before = components(switching)

    def broken(*args: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(attachment, "ComponentSet", broken)
        with pytest.raises(error):
            switching.warmup()
    assert switching.report().attached
    assert components(switching) is before
    assert all(seam.stands for seam in before["t3"].seams)
    assert "another process is compiling" in switching.report().components["t3"].note
    monkeypatch.setattr(T3Component, "warm_up", lambda self: None)
    switching.warmup()
    assert components(switching) is not before
    assert all(seam.stands for seam in components(switching)["t3"].seams)


def test_somebody_in_front_of_it_keeps_it_from_switching(switching: Any, caplog: pytest.LogCaptureFixture) -> None:
    before, ours = components(switching), switching.t3.inference
    switching.t3.inference = lambda **kwargs: ours(**kwargs)
    monkeypatched = switching.t3.inference
    for _ in range(2):
        switching.warmup()
    assert switching.t3.inference is monkeypatched
    assert components(switching) is before
    assert caplog.text.count("what was compiled in the background is not used") == 1
    switching.t3.inference = ours


@pytest.mark.parametrize("fallback", ["fallback", "raise"])
def test_every_component_falls_as_configured(tts: Any, monkeypatch: pytest.MonkeyPatch, fallback: str) -> None:
    released: list[str] = []
    monkeypatch.setattr("tts_compile.fallback.release_memory", lambda: None)
    for kind in (T3Component, FlowComponent, VocoderComponent, *EAGER_ONES.values()):
        monkeypatch.setattr(kind, "release", lambda self: released.append(self.fallback.component))

    def short() -> None:
        raise MemoryError

    with tc.compile_model(tts, EAGER.replace(max_failures=1, fallback=fallback)) as fast:
        for name in tc.config.COMPONENTS:
            manager = components(fast)[name].fallback
            ways = {"eager": short, "stock": lambda: "stock's"}
            if fallback == "raise":
                with pytest.raises(MemoryError):
                    manager.run(ways)
                continue
            assert manager.run(ways) == "stock's"
            assert released.pop() == name
            assert manager.level == "stock"


def test_restoring_ends_the_other_process(tts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    children = psutil.Process().children()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    config = tc.CompileConfig.off().replace(t3=QUICK, compile_in_background=True, warmup_samples=0)
    fast = tc.compile_model(tts, config)
    running = process_of(fast)
    assert running.running
    fast.restore()
    assert not running.running
    assert psutil.Process().children() == children  # and waited for
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_failures", 0),
        ("max_failures", True),
        ("compile_seconds", 0),
        ("compile_seconds", "60"),
        ("compile_in_background", 1),
        ("cpu_fallback", None),
    ],
)
def test_settings_out_of_range(name: str, value: Any) -> None:
    with pytest.raises(tc.ConfigError, match=name):
        tc.CompileConfig(**{name: value})
