"""The reference voice, stock against compiled, in fresh processes that alternate.

``python -m tts_compile.bench.voice SOURCE --side stock|compiled ...`` is one of these processes; it prints one JSON
object.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..api import compile_model
from ..components.audio import digest
from ..config import CompileConfig, ComponentPolicy
from ..errors import TTSCompileError
from ..testing import make_reference_wav
from . import machine
from .models import Progress, describe, load, quiet, timed_call
from .stats import Ratio, Spread, markdown_table, ratio_of_medians

SIDES = ("stock", "compiled")
PHASES = {
    "first_cold": "first call, empty numba cache, s",
    "first": "first call of a process, s",
    "later": "later call with another file, s",
    "repeated": "call with a file seen before, s",
}


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        repeats: fresh processes of each side; an empty numba cache is given to one more of each.
        seconds: of the first recording; the second one is a tenth shorter.
    """

    device: str = "cpu"
    repeats: int = 5
    seconds: float = 10.0


@dataclass
class Side:
    """One side's raw seconds: a value per fresh process, for ``first_cold`` a single one."""

    first_cold: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    later: list[float] = field(default_factory=list)
    repeated: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class VoiceResult:
    """Everything measured; :meth:`to_dict` is JSON-able, ``str()`` a table.

    Attributes:
        identical: every tensor of ``tts.conds`` after every call, in every process, on both sides.
        report: the execution report of the last compiled process as plain values.
    """

    settings: Settings
    model: dict[str, Any]
    machine: dict[str, Any]
    stock: Side
    compiled: Side
    identical: bool
    report: dict[str, Any]

    @property
    def passed(self) -> bool:
        """Whether the compiled side did what stock does; speed is no part of it."""
        return self.identical

    @property
    def gains(self) -> dict[str, Ratio]:
        """How many times faster the compiled side is."""
        return {p: ratio_of_medians(getattr(self.stock, p), getattr(self.compiled, p)) for p in PHASES}

    def to_dict(self) -> dict[str, Any]:
        """Raw values and what follows from them."""
        gains = {name: {**asdict(gain), "verdict": gain.verdict} for name, gain in self.gains.items()}
        return {"bench": "voice", "passed": self.passed, **asdict(self), "gains": gains}

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [
            ("reference voice, median (min to max)", "stock", "compiled", "gain (95% interval)")
        ]
        for phase, title in PHASES.items():
            cells = [_spread(getattr(side, phase)) for side in (self.stock, self.compiled)]
            rows.append((title, *cells, str(self.gains[phase])))
        identical = "yes" if self.identical else "NO"
        rows.append(("every tensor identical", "", identical, f"{self.settings.repeats + 1} processes each"))
        about, versions = self.machine, self.machine["versions"]
        return "\n".join([
            markdown_table(rows),
            "",
            f"{self.settings.seconds:g} s of reference, {self.model['dtype']}, {self.model['device']}; {about['cpu']}, "
            f"{about['torch_threads']} threads; torch {versions['torch']}, chatterbox-tts {versions['chatterbox-tts']}",
        ])  # fmt: skip


def run(source: str, settings: Settings) -> VoiceResult:
    """Measure; ``source`` as :func:`tts_compile.bench.models.load` takes it."""
    sides = {name: Side() for name in SIDES}
    seen: set[str] = set()
    last: dict[str, Any] = {}
    with (
        tempfile.TemporaryDirectory(prefix="tts-compile-voice-") as name,
        Progress(2 * settings.repeats + 4) as progress,
    ):
        folder = Path(name)
        files = [
            make_reference_wav(folder / f"{i}.wav", seconds=settings.seconds * share)
            for i, share in enumerate((1, 0.9))
        ]

        def measure(side: str, numba_cache: Path) -> dict[str, Any]:
            with progress.step(side):
                found = _child(source, side, settings.device, files, numba_cache)
            seen.add(json.dumps(found["digests"]))
            return found

        for side in SIDES:
            sides[side].first_cold.append(measure(side, folder / f"cold-{side}")["first"])
        warm = folder / "cold-stock"  # what stock's first process has left there
        for side in SIDES:
            measure(side, warm)  # un-timed: pages in the weights and the libraries
        for repeat in range(settings.repeats):
            for side in SIDES if repeat % 2 == 0 else SIDES[::-1]:
                last[side] = measure(side, warm)
                for phase in ("first", "later", "repeated"):
                    getattr(sides[side], phase).append(last[side][phase])
    return VoiceResult(
        settings=settings,
        model=last["compiled"]["model"],
        machine=machine.describe(),
        stock=sides["stock"],
        compiled=sides["compiled"],
        identical=len(seen) == 1,
        report=last["compiled"]["report"],
    )


def _child(source: str, side: str, device: str, files: Sequence[Path], numba_cache: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", __name__, source, "--side", side, "--device", device, *map(str, files)]
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(numba_cache)}
    child = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if child.returncode != 0:
        reason = (child.stderr.strip().splitlines() or ["no message"])[-1]
        raise TTSCompileError(f"measuring the {side} side's voice failed: {reason}")
    found: dict[str, Any] = json.loads(child.stdout)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Load, prepare three voices on one side, print the seconds."""
    parser = argparse.ArgumentParser(description="Seconds of the first, a later and a repeated reference.")
    parser.add_argument("source", help="checkpoint folder, or 'pretrained'")
    parser.add_argument("files", nargs=2, type=Path, help="two recordings")
    parser.add_argument("--side", choices=SIDES, required=True)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(argv)
    found: dict[str, Any] = {"digests": []}
    with quiet():
        tts = load(args.source, args.device)
        ours = ComponentPolicy(execution="stock" if args.side == "stock" else "auto")
        config = CompileConfig.off().replace(reference=ours, voice_encoder=ours)
        with compile_model(tts, config) as fast:
            first, second = args.files
            for phase, file in (("first", first), ("later", second), ("repeated", second)):
                _, found[phase] = timed_call(args.device, functools.partial(tts.prepare_conditionals, file))
                found["digests"].append(_digests(tts.conds))
            found["report"] = fast.report().to_dict()
        found["model"] = describe(tts)
    print(json.dumps(found))
    return 0


def _digests(conds: Any) -> dict[str, str | None]:
    """A hash of every tensor, by name."""
    parts = {**vars(conds.t3), **conds.gen}
    return {
        name: digest(part.detach().cpu().numpy()) if isinstance(part, torch.Tensor) else None
        for name, part in parts.items()
    }


def _spread(values: list[float]) -> str:
    s = Spread.of(values)
    return f"{s.median:.3g} ({s.low:.3g} to {s.high:.3g})" if len(values) > 1 else f"{s.median:.3g}"


if __name__ == "__main__":
    raise SystemExit(main())
