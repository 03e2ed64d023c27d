"""A fresh process that loads a model and speaks once: when it got where, and its peak memory."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

import torch

from ..api import compile_model
from ..config import CompileConfig
from ..peak import peak_bytes, reset_peak
from . import child
from .child import Child, mark
from .models import load, only, quiet, t3_inputs

SIDES = ("stock", "compiled")
# What a user's program imports first; that of the stock side must not find torch imported by this library already.
_IMPORTS = {"stock": "chatterbox.tts", "compiled": "tts_compile, chatterbox.tts"}
_PROGRAM = "\n".join([
    "print({started!r}, flush=True)",
    "import {modules}",
    "print({imported!r}, flush=True)",
    "from {here} import main",
    "main()",
])  # fmt: skip


def measure(
    source: str, side: str, *, device: str, tokens: int | None, text: str | None, seed: int, cache_dir: str
) -> Child:
    """Start the process and wait for it; it finds ``peaks`` of memory in bytes, ``report`` and ``model``.

    Marks: ``started``, ``imported``, ``loading``, ``loaded``, ``compiled`` and, where it spoke, ``called``.

    Args:
        source: see :func:`tts_compile.bench.models.load`.
        side: ``"stock"`` or ``"compiled"``.
        device: where the model is loaded to.
        tokens: speech tokens of the one T3 call; None for ``generate`` instead.
        text: of that call; None: there is none.
        seed: of that call.
        cache_dir: the folder for compiled code.
    """
    options = {"side": side, "device": device, "tokens": tokens, "text": text, "seed": seed, "cache-dir": cache_dir}
    given = [f"--{name}={value}" for name, value in options.items() if value is not None]
    program = _PROGRAM.format(started=mark("started"), imported=mark("imported"), modules=_IMPORTS[side], here=__name__)
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


def _load_to_compile(source: str, device: str) -> Any:
    """How a program that is going to compile a model loads it."""
    return load(source, device)


def main(argv: Sequence[str] | None = None) -> int:
    """Load, speak once on one side, print what was found."""
    parser = argparse.ArgumentParser(description="Seconds and peak memory of loading a model and one call.")
    parser.add_argument("source", help="checkpoint folder, or 'pretrained'")
    parser.add_argument("--side", choices=SIDES, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tokens", type=int, help="of T3 alone; without it, the whole generate runs")
    parser.add_argument("--text", help="without it, nothing is spoken")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache-dir")
    args = parser.parse_args(argv)
    terminal = sys.stdout

    def passed(name: str) -> None:
        print(mark(name), file=terminal, flush=True)

    with quiet():
        passed("loading")
        tts = (load if args.side == "stock" else _load_to_compile)(args.source, args.device)
        passed("loaded")
        while_loading, how = peak_bytes()
        reset = reset_peak()
        report = None
        passed("compiling")
        if args.side == "compiled":
            config = CompileConfig.from_env()
            config = config if args.tokens is None else only("t3", config)
            fast = compile_model(tts, config.replace(cache_dir=args.cache_dir))
        passed("compiled")
        if args.text is not None:
            torch.manual_seed(args.seed)
            if args.tokens is None:
                tts.generate(args.text)
            else:
                tts.t3.inference(**t3_inputs(tts, args.text), max_new_tokens=args.tokens)
            passed("called")
        after, _ = peak_bytes()
        if args.side == "compiled":
            report = fast.report().to_dict()
    # Loading stock's way peaks far above running, so that a copy of the weights would hide below it.
    peaks = {"process": max(while_loading, after), "call": after if reset and args.text is not None else None}
    print(json.dumps({"peaks": {**peaks, "how": how}, "report": report}))
    return 0
