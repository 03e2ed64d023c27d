"""Fresh Python processes: one that calls a function, and one that loads a model on one side and calls it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from .. import _compat
from ..api import compile_model
from ..config import CompileConfig
from ..errors import TTSCompileError
from ..timing.blocks import Stopwatch
from ..timing.peak_memory import peak_bytes, reset_peak
from .models import load, load_quickly, quiet

# The first statements of a user's program; on the stock side they must not find torch imported by this library.
_IMPORTS = {
    "stock": "from chatterbox.tts import ChatterboxTTS",
    "compiled": "from tts_compile.loading import stock_class; ChatterboxTTS = stock_class('ChatterboxTTS')",
}
_PROGRAM = """
import json, sys, time
before = time.perf_counter()
{imports}
imports = time.perf_counter() - before
from {module} import {function}
print(json.dumps({{"imports": imports, **{function}(*json.loads(sys.argv[1]))}}))
"""


def in_fresh_process(
    what: str,
    function: Callable[..., dict[str, Any]],
    *arguments: Any,
    imports: str = "",
    environment: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Returns the result of a function that a new Python process calls, and the seconds of its first ``imports``.

    Args:
        what: the process in words, for the message of an error.
        function: importable; its result is plain values.
        arguments: plain values.
        imports: statements that run, and are timed, before anything else is imported.
        environment: variables in addition to this process's.

    Raises:
        TTSCompileError: when the process fails; the message quotes the last line of its error output.
    """
    program = _PROGRAM.format(imports=imports, module=function.__module__, function=function.__name__)
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(arguments)],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, **(environment or {})},
    )
    if done.returncode != 0:
        raise TTSCompileError(f"{what} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])  # other libraries print while they are imported
    return found


class Wanted(NamedTuple):
    """What a process does once the model is loaded.

    Attributes:
        device: the model is loaded to it.
        cache_dir: the folder for compiled code.
        calls: the number of calls.
        text: of the calls.
        seed: of the calls.
        dtype: of T3's weights on the compiled side, see :func:`tts_compile.load_model`.
    """

    device: str
    cache_dir: str
    calls: int
    text: str
    seed: int
    dtype: str = "model"


def measure(source: str, side: str, wanted: Wanted) -> dict[str, Any]:
    """Returns what :func:`load_and_call` finds in a fresh process, and the seconds of ``imports``."""
    return in_fresh_process(
        f"the {side} side in a fresh process", load_and_call, source, side, wanted, imports=_IMPORTS[side]
    )


def load_and_call(source: str, side: str, work: tuple[Any, ...]) -> dict[str, Any]:
    """Loads the model, calls it on one side and returns the figures.

    These are the seconds of ``load``, of ``compile`` on the compiled side, and of ``calls``; ``peaks`` of memory in
    bytes; the ``graphs`` that torch found in its cache on disk and those that it did not; and the ``report``.
    """
    wanted, found = Wanted(*work), dict[str, Any](report=None)
    with quiet():
        with Stopwatch() as loading:
            if side == "stock":
                tts = load(source, wanted.device)
            else:
                tts = load_quickly(source, wanted.device, dtype=wanted.dtype)
        while_loading, how = peak_bytes()
        reset = reset_peak()
        if side == "compiled":
            config = CompileConfig.from_env().replace(cache_dir=wanted.cache_dir)
            with Stopwatch() as compiling:
                fast = compile_model(tts, config)
            found["compile"] = compiling.seconds
        calls = []
        for _ in range(wanted.calls):
            torch.manual_seed(wanted.seed)
            with Stopwatch() as calling:
                tts.generate(wanted.text)
            calls.append(calling.seconds)
        after, _ = peak_bytes()
        if side == "compiled":
            found["report"] = fast.report().to_dict()
    # Loading in stock's way peaks far above a call, so that a copy of the weights would not show in the whole peak.
    peaks = {
        "process": max(while_loading, after),
        "loading": while_loading,
        "call": after if reset and calls else None,
        "how": how,
    }
    return found | {"load": loading.seconds, "calls": calls, "peaks": peaks, "graphs": _compat.graphs_in_cache()}
