"""Peak memory of a fresh process that loads a model and runs T3, or the whole ``generate``, once.

Run as ``python -m tts_compile.bench.memory SOURCE --side stock|compiled ...``; prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import torch

from ..api import compile_model
from ..config import CompileConfig
from ..errors import TTSCompileError
from ..peak import peak_bytes, reset_peak
from .models import load, only, quiet, t3_inputs


def measure_in_child(
    source: str, side: str, *, device: str, tokens: int | None, text: str, seed: int, cache_dir: str
) -> dict[str, Any]:
    """Peak memory in bytes of a fresh process; keys ``process``, ``call`` (or None), ``how``.

    Args:
        source: see :func:`tts_compile.bench.models.load`.
        side: ``"stock"`` or ``"compiled"``.
        device: where the model is loaded to.
        tokens: speech tokens of the one T3 call; None for ``generate`` instead.
        text: of that call.
        seed: of that call.
        cache_dir: the folder for compiled code.
    """
    options = {"side": side, "device": device, "tokens": tokens, "text": text, "seed": seed, "cache-dir": cache_dir}
    options = {name: value for name, value in options.items() if value is not None}
    command = [sys.executable, "-m", __name__, source, *(f"--{name}={value}" for name, value in options.items())]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    if child.returncode != 0:
        reason = (child.stderr.strip().splitlines() or ["no message"])[-1]
        raise TTSCompileError(f"measuring the {side} side's memory failed: {reason}")
    result: dict[str, Any] = json.loads(child.stdout)
    return result


def table_rows(peaks: dict[str, dict[str, Any]] | None) -> list[tuple[str, str, str, str]]:
    """Rows of a bench's table for the peaks of both sides, as far as they could be measured."""
    rows = []
    for key, what in (("process", "peak memory with loading, GiB"), ("call", "peak memory of the call, GiB")):
        if peaks and peaks["stock"][key] and peaks["compiled"][key]:
            of_stock, of_compiled = peaks["stock"][key], peaks["compiled"][key]
            cells = (f"{of_stock / 2**30:.2f}", f"{of_compiled / 2**30:.2f}")
            rows.append((what, *cells, f"{of_compiled / of_stock:.3f} of stock's"))
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Load, speak once on one side, print the peaks."""
    parser = argparse.ArgumentParser(description="Peak memory of loading a model and one call.")
    parser.add_argument("source", help="checkpoint folder, or 'pretrained'")
    parser.add_argument("--side", choices=("stock", "compiled"), required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tokens", type=int, help="of T3 alone; without it, the whole generate runs")
    parser.add_argument("--text", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache-dir")
    args = parser.parse_args(argv)
    with quiet():
        tts = load(args.source, args.device)
        while_loading, how = peak_bytes()
        reset = reset_peak()
        if args.side == "compiled":
            config = CompileConfig.from_env()
            config = config if args.tokens is None else only("t3", config)
            compile_model(tts, config.replace(cache_dir=args.cache_dir))
        torch.manual_seed(args.seed)
        if args.tokens is None:
            tts.generate(args.text)
        else:
            tts.t3.inference(**t3_inputs(tts, args.text), max_new_tokens=args.tokens)
        after, _ = peak_bytes()
    # Loading stock's way peaks far above running, so that a copy of the weights would hide below it.
    print(json.dumps({"process": max(while_loading, after), "call": after if reset else None, "how": how}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
