"""Every branch on a feature of torch, transformers or chatterbox; the version is never looked at."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch

# Errors of torch's compiler that are not derived from its base; not every version has all of them.
_FAILURES = (
    *("FailOnRecompileLimitHit", "InductorError", "CppCompileError", "InvalidCxxCompiler"),
    "MissingOperatorWithDecomp",
)


def is_compile_failure(error: BaseException) -> bool:
    """Returns whether ``error`` comes from compiling; a shortage of memory while compiling does not count."""
    from torch._dynamo import exc as dynamo
    from torch._inductor import exc as inductor

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, (MemoryError, torch.cuda.OutOfMemoryError)):
            return False
        cause = getattr(cause, "inner_exception", None) or cause.__cause__
    kinds = [getattr(module, name) for module in (dynamo, inductor) for name in _FAILURES if hasattr(module, name)]
    # OSError: the folder for compiled code cannot be used.
    return isinstance(error, (dynamo.TorchDynamoException, OSError, *kinds))


def dynamo_counters() -> Any:
    """Returns torch's counters, stable from 2.6 to 2.15: ``["stats"]["unique_graphs"]``, ``["graph_break"]``, ..."""
    from torch._dynamo.utils import counters

    return counters


def graph_counts() -> tuple[int, int]:
    """Returns (graphs compiled, graph breaks) in this process so far."""
    counters = dynamo_counters()
    return counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())


def graphs_in_cache() -> dict[str, int]:
    """Counts graphs that inductor found in its cache on disk (``hit``), compiled (``miss``) or never keeps there."""
    found = dynamo_counters()["inductor"]
    return {name: found[f"fxgraph_cache_{name}"] for name in ("hit", "miss", "bypass")}


def no_new_graphs() -> AbstractContextManager[object]:
    """Returns a context in which graphs that are not compiled yet run eagerly, in the whole process."""
    stance: AbstractContextManager[object] = torch.compiler.set_stance("eager_on_recompile")
    return stance


def launch_settings() -> tuple[Any, ...]:
    """Returns the settings of torch that decide which kernels are launched on a GPU."""
    cudnn: Any = torch.backends.cudnn
    if hasattr(torch.backends, "fp32_precision"):  # the older settings raise once these are in use
        matmul: Any = torch.backends.cuda.matmul
        precision = matmul.fp32_precision, cudnn.conv.fp32_precision
    else:
        precision = torch.get_float32_matmul_precision(), cudnn.allow_tf32
    return *precision, cudnn.enabled, cudnn.benchmark, cudnn.deterministic, torch.are_deterministic_algorithms_enabled()


def has_triton() -> bool:
    """Returns whether inductor can generate GPU kernels here; Triton's launchers need a C compiler."""
    from torch.utils._triton import has_triton as found

    compilers = (os.environ.get("CC", ""), "cc", "gcc", "clang")
    return bool(found()) and any(shutil.which(name) for name in compilers if name)


def cpp_compiler() -> str | None:
    """Returns the C++ compiler that inductor uses on a CPU, or None where it finds none that works."""
    from torch._inductor import cpp_builder

    try:
        return str(cpp_builder.get_cpp_compiler())
    except (RuntimeError, OSError):  # InvalidCxxCompiler, a RuntimeError on Windows; OSError where CXX cannot be run
        return None


_INDUCTOR = "TORCHINDUCTOR_CACHE_DIR"
_TRITON = "TRITON_CACHE_DIR"  # torch sets it to a folder inside inductor's, and does not reset it
_cache_dirs = threading.Lock()
_open_dirs: list[str] = []  # of the open blocks of using_cache_dir, the last entered last
_outside: dict[str, str | None] = {}  # the environment outside of these blocks
_applied = contextlib.ExitStack()  # undoes what the last entered block has set
_trusted: set[str] = set()  # folders, see trust_isa


def inductor_cache_dir() -> str | None:
    """Returns the folder that the user has set for inductor; None where torch chooses it.

    The environment alone does not answer this: torch writes its choice into the environment, where other processes
    inherit it, and :func:`using_cache_dir` replaces the value for the duration of its block.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    with _cache_dirs:
        path = (_outside if _open_dirs else os.environ).get(_INDUCTOR)
    try:
        return None if path == default_cache_dir() else path
    except (ImportError, KeyError, OSError):  # the user has no name, from which torch makes its choice
        return path


@contextlib.contextmanager
def using_cache_dir(path: str) -> Iterator[None]:
    """Makes torch keep compiled code under ``path`` for the duration of the block, in the whole process.

    Blocks of several threads may overlap in any order; the folder of the block that was entered last counts.
    """
    with _applying_last():
        _open_dirs.append(path)
    try:
        yield
    finally:
        with _applying_last():
            del _open_dirs[len(_open_dirs) - 1 - _open_dirs[::-1].index(path)]


@contextlib.contextmanager
def _applying_last() -> Iterator[None]:
    """Sets environment and torch for the folder of the last open block, where the ``with`` block has changed it."""
    with _cache_dirs:
        before = _open_dirs[-1:]
        yield
        if _open_dirs[-1:] != before:
            _applied.close()
            for path in _open_dirs[-1:]:
                _applied.enter_context(_environment(path))
                _applied.enter_context(_keeping_all_graphs())
                _applied.enter_context(_trusting_isa(path))


@contextlib.contextmanager
def _environment(path: str) -> Iterator[None]:
    _outside.update({name: os.environ.get(name) for name in (_INDUCTOR, _TRITON)})
    os.environ[_INDUCTOR] = path
    try:
        yield
    finally:
        for name, value in _outside.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _keeping_all_graphs() -> Iterator[None]:
    """Makes torch 2.6 cache traced graphs, and graphs with calls that write to their arguments, as later versions do.

    Without the latter, a graph with such a call is compiled again in every process.
    """
    from torch._functorch import config as autograd
    from torch._higher_order_ops.auto_functionalize import auto_functionalized_v2 as writing

    if writing.cacheable():
        yield
        return
    settings: Any = autograd
    asked = "TORCHINDUCTOR_AUTOGRAD_CACHE" in os.environ
    writing._cacheable = True
    try:
        with contextlib.nullcontext() if asked else settings.patch(enable_autograd_cache=True):
            yield
    finally:
        writing._cacheable = False


def listed_isas() -> list[str]:
    """Returns the vector instructions that the processor lists and torch can generate code for, without a trial."""
    from torch._inductor import config, cpu_vec_isa

    settings: Any = config
    find: Any = cpu_vec_isa.valid_vec_isa_list
    with settings.patch({"cpp.vec_isa_ok": True}):
        return [str(isa) for isa in find.__wrapped__()]  # past its cache, which holds the result of the trials


def working_isas() -> list[str]:
    """Returns the vector instructions that torch has tried successfully, each in a process of its own."""
    from torch._inductor import cpu_vec_isa

    return [str(isa) for isa in cpu_vec_isa.valid_vec_isa_list()]


def isa_is_known(path: str) -> bool:
    """Returns whether torch tries no vector instructions for code under ``path``: trusted there, or set by the user."""
    from torch._inductor import config

    return path in _trusted or getattr(config.cpp, "vec_isa_ok", True) is not None


def trust_isa(path: str) -> None:
    """Makes :func:`using_cache_dir` use all vector instructions that the processor lists, without a trial."""
    _trusted.add(path)


@contextlib.contextmanager
def _trusting_isa(path: str) -> Iterator[None]:
    if path not in _trusted:
        yield
        return
    from torch._inductor import config

    settings: Any = config
    with settings.patch({"cpp.vec_isa_ok": True}):  # part of torch's cache keys: equal in every process
        yield


def has_global_forward_hooks() -> bool:
    """Returns whether global hooks run before or after the forward of every module."""
    module = torch.nn.modules.module
    return bool(module._global_forward_hooks or module._global_forward_pre_hooks)
