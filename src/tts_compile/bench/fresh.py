"""A fresh process that loads a model and speaks once: when it got where, and its peak memory."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

import torch

from .. import _compat
from ..api import compile_model
from ..config import CompileConfig
from ..timing.blocks import Stopwatch
from ..timing.peak_memory import peak_bytes, reset_peak
from . import child
from .child import Child, mark
from .models import load, load_quickly, only, quiet, t3_inputs

SIDES = ("stock", "compiled")
# What a user's program does first; that of the stock side must not find torch imported by this library already.
_IMPORTS = {
    "stock": "from chatterbox.tts import ChatterboxTTS",
    "compiled": "from tts_compile.loading import stock_class; ChatterboxTTS = stock_class('ChatterboxTTS')",
}
_PROGRAM = "\n".join([
    "print({started!r}, flush=True)",
    "{imports}",
    "print({imported!r}, flush=True)",
    "from {here} import main",
    "main()",
])  # fmt: skip


def measure(
    source: str,
    side: str,
    *,
    device: str,
    tokens: int | None,
    text: str | None,
    seed: int,
    cache_dir: str,
    calls: int = 1,
    dtype: str = "model",
) -> Child:
    """Start the process and wait for it.

    It finds ``peaks`` of memory in bytes, ``calls``: the seconds of each, ``graphs``: how many torch has found in its
    cache on disk and how many not, and ``report``.

    Marks: ``started``, ``imported``, ``loading``, ``loaded``, ``compiling`` and ``compiled``.

    Args:
        source: see :func:`tts_compile.bench.models.load`.
        side: ``"stock"`` or ``"compiled"``.
        device: where the model is loaded to.
        tokens: speech tokens of the one T3 call; None for ``generate`` instead.
        text: of that call; None: there is none.
        seed: of that call.
        cache_dir: the folder for compiled code.
        calls: how many of them.
        dtype: of T3's weights on the compiled side, see :func:`tts_compile.load_model`.
    """
    options = {"side": side, "device": device, "tokens": tokens, "text": text, "seed": seed, "cache-dir": cache_dir}
    options |= {"calls": calls, "dtype": dtype}
    given = [f"--{name}={value}" for name, value in options.items() if value is not None]
    program = _PROGRAM.format(started=mark("started"), imported=mark("imported"), imports=_IMPORTS[side], here=__name__)
    return child.run(["-c", program, source, *given], f"the {side} side in a fresh process")


def peaks(source: str, **options: Any) -> dict[str, dict[str, Any]]:
    """Peak memory in bytes of both sides: keys ``process``, ``call`` (or None), ``how``; options of :func:`measure`."""
    return {side: measure(source, side, **options).found["peaks"] for side in SIDES}


def peak_rows(found: dict[str, dict[str, Any]] | None) -> list[tuple[str, str, str, str]]:
    """Rows of a bench's table for the peaks of both sides, as far as they could be measured."""
    rows = []
    for key, what in (("process", "peak memory with loading, GiB"), ("call", "peak memory of the call, GiB")):
        if found and found["stock"][key] and found["compiled"][key]:
            of_stock, of_compiled = found["stock"][key], found["compiled"][key]
            cells = (f"{of_stock / 2**30:.2f}", f"{of_compiled / 2**30:.2f}")
            rows.append((what, *cells, f"{of_compiled / of_stock:.3f} of stock's"))
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Load, speak once on one side, print what was found."""
    parser = argparse.ArgumentParser(description="Seconds and peak memory of loading a model and one call.")
    parser.add_argument("source", help="checkpoint folder, or 'pretrained'")
    parser.add_argument("--side", choices=SIDES, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tokens", type=int, help="of T3 alone; without it, the whole generate runs")
    parser.add_argument("--text", help="without it, nothing is spoken")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--calls", type=int, default=1)
    parser.add_argument("--dtype", default="model")
    parser.add_argument("--cache-dir")
    args = parser.parse_args(argv)
    terminal = sys.stdout

    def passed(name: str) -> None:
        print(mark(name), file=terminal, flush=True)

    with quiet():
        passed("loading")
        tts = (
            load(args.source, args.device)
            if args.side == "stock"
            else load_quickly(args.source, args.device, dtype=args.dtype)
        )
        passed("loaded")
        while_loading, how = peak_bytes()
        reset = reset_peak()
        report = None
        calls: list[float] = []
        passed("compiling")
        if args.side == "compiled":
            config = CompileConfig.from_env()
            config = config if args.tokens is None else only("t3", config)
            fast = compile_model(tts, config.replace(cache_dir=args.cache_dir))
        passed("compiled")
        for _ in range(args.calls if args.text is not None else 0):
            torch.manual_seed(args.seed)
            with Stopwatch() as watch:
                if args.tokens is None:
                    tts.generate(args.text)
                else:
                    tts.t3.inference(**t3_inputs(tts, args.text), max_new_tokens=args.tokens)
            calls.append(watch.seconds)
        after, _ = peak_bytes()
        if args.side == "compiled":
            report = fast.report().to_dict()
    # Loading stock's way peaks far above running, so that a copy of the weights would hide below it.
    peaks = {
        "process": max(while_loading, after),
        "loading": while_loading,
        "call": after if reset and calls else None,
        "how": how,
    }
    found = {"peaks": peaks, "calls": calls, "graphs": _compat.graphs_in_cache(), "report": report}
    print(json.dumps(found))
    return 0
