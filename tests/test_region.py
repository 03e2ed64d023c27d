"""A compiled function counts its calls from inside, so that the counts cannot claim what did not run."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from tts_compile import CompilationError, FallbackManager
from tts_compile.execution import CompileOptions, Region
from tts_compile.timing.blocks import Timings, timed

CPU = torch.device("cpu")


pytestmark = pytest.mark.usefixtures("fresh_dynamo")


def double(x: Tensor) -> Tensor:
    return x * 2


class Made(NamedTuple):
    """A region and the manager that decides its level."""

    region: Region
    fallback: FallbackManager


def made(function: Any = double, level: str = "inductor", backend: Any = "eager", policy: str = "fallback") -> Made:
    fallback = FallbackManager("t3", ["inductor", "eager"] if level == "inductor" else ["eager"], policy)
    return Made(Region("double", function, fallback, CPU, CompileOptions(backend)), fallback)


def broken_backend(graph: Any, inputs: Any) -> Any:
    raise RuntimeError("this backend never works")


def test_compiled_calls_are_counted_inside_the_graph() -> None:
    r, _ = made()
    for _ in range(3):
        assert torch.equal(r(torch.ones(4)), torch.full((4,), 2.0))
    assert (r.calls, r.compiled_calls, r.eager_calls, r.graphs, r.graph_breaks) == (3, 3, 0, 1, 0)


def test_a_new_shape_is_a_new_graph_and_seen() -> None:
    r, _ = made()
    r(torch.ones(4))
    r(torch.ones(4, 4))
    assert r.graphs == 2
    assert r.compiled_calls == 2


def test_eager_calls_are_counted_apart() -> None:
    r, _ = made(level="eager")
    r(torch.ones(4))
    assert (r.calls, r.compiled_calls, r.eager_calls, r.graphs) == (1, 0, 1, 0)


def test_torch_told_to_run_eagerly_shows() -> None:
    r, _ = made()
    with torch.compiler.set_stance("force_eager"):
        r(torch.ones(4))
    assert (r.calls, r.compiled_calls, r.eager_calls, r.graphs) == (1, 0, 1, 0)
    r(torch.ones(4))
    assert (r.calls, r.compiled_calls, r.eager_calls) == (2, 1, 1)


def test_torch_switched_off_shows() -> None:
    with torch._dynamo.config.patch(disable=True):
        r, _ = made()
        r(torch.ones(4))
    assert (r.calls, r.compiled_calls, r.eager_calls) == (1, 0, 1)


def test_past_the_recompile_limit_shows() -> None:
    with torch._dynamo.config.patch(cache_size_limit=1):
        r, _ = made()
        r(torch.ones(4))
        r(torch.ones(4, 4))
        r(torch.ones(4, 4, 4))
    assert r.calls == 3
    assert r.compiled_calls == 1
    assert r.eager_calls == 2


def test_failed_compilation_falls_back_with_an_event() -> None:
    r, fallback = made(backend=broken_backend)
    for _ in range(2):
        assert torch.equal(r(torch.ones(4)), torch.full((4,), 2.0))
    assert (r.calls, r.compiled_calls, r.eager_calls) == (2, 0, 2)
    (event,) = fallback.events
    assert event.phase == "compile"
    assert event.action == "eager instead of inductor"


def test_seconds_of_a_failed_compilation_are_compile_time() -> None:
    timings = Timings()

    def unknown_to_dynamo(x: Tensor) -> Tensor:  # fails before there is a graph to count
        torch._dynamo.graph_break()
        return x * 2

    r, _ = made(unknown_to_dynamo)
    with timed("call", timings):
        r(torch.ones(4))
    assert r.graphs == 0
    assert [row.path for row in timings.rows("compile")] == [("call",), ("call", "compile double")]
    assert timings.rows("steady") == []
    with timed("call", timings):
        r(torch.ones(4))
    assert [row.path for row in timings.rows("steady")] == [("call",)]


def test_event_names_the_cause() -> None:
    r, fallback = made(backend=broken_backend)
    r(torch.ones(4))
    (event,) = fallback.events
    assert "this backend never works" in event.error


def test_graph_break_is_a_failed_compilation() -> None:
    def breaks(x: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return x * 2

    r, fallback = made(breaks)
    assert torch.equal(r(torch.ones(4)), torch.full((4,), 2.0))
    assert r.compiled_calls == 0
    assert len(fallback.events) == 1


def test_policy_raise_raises_from_the_cause() -> None:
    r, _ = made(backend=broken_backend, policy="raise")
    with pytest.raises(CompilationError, match=r"t3: compile .* failed") as caught:
        r(torch.ones(4))
    assert isinstance(caught.value.__cause__, torch._dynamo.exc.TorchDynamoException)


def test_interrupt_while_compiling_is_no_compile_failure() -> None:
    def interrupted(graph: Any, inputs: Any) -> Any:
        raise KeyboardInterrupt

    r, fallback = made(backend=interrupted)
    with pytest.raises(KeyboardInterrupt):
        r(torch.ones(4))
    assert fallback.events == []
    assert fallback.level == "inductor"


def test_memory_running_out_while_compiling_is_no_compile_failure() -> None:
    def exhausted(graph: Any, inputs: Any) -> Any:
        raise MemoryError("no memory left")

    r, fallback = made(backend=exhausted)
    with pytest.raises(Exception, match="no memory left"):
        r(torch.ones(4))
    assert fallback.events == []


def test_error_of_the_running_graph_is_the_callers() -> None:
    def compiles_to_a_failure(graph: Any, inputs: Any) -> Any:
        def run(*args: Any) -> Any:
            raise ValueError("the caller's own mistake")

        return run

    r, fallback = made(backend=compiles_to_a_failure)
    with pytest.raises(ValueError, match="the caller's own mistake"):
        r(torch.ones(4))
    assert fallback.events == []
    assert fallback.level == "inductor"


def test_error_that_eager_gives_too_is_no_compile_failure() -> None:
    r, fallback = made(lambda x: x @ torch.ones(7))
    with pytest.raises(RuntimeError, match=r"size mismatch|shape"):
        r(torch.ones(4, 4))
    assert fallback.events == []
    assert fallback.level == "inductor"
