"""The reference voice, stock against compiled, in fresh processes that alternate.

``python -m tts_compile.bench.voice SOURCE --side stock|compiled ...`` is one of these processes; it prints one JSON
object.
"""

from __future__ import annotations

import argparse
import functools
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..api import compile_model
from ..audio.reading import digest
from ..config import CompileConfig, ComponentPolicy
from ..measuring import interleaved as alternation
from ..measuring import machine, stats
from ..measuring.stats import Ratio, ratio_of_medians, spread, yes
from ..testing import make_reference_wav
from . import child
from .models import Progress, describe, load, quiet, timed_call
from .plots import Plot, Ratios
from .section import Cell, Result, Section, where

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
class VoiceResult(Result):
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
    def title(self) -> str:
        """Of the page."""
        return "The reference voice, in fresh processes"

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
        return {"bench": "voice", "passed": self.passed, **asdict(self), "gains": stats.plain(self.gains)}

    def sections(self) -> list[Section]:
        """One table."""
        rows: list[tuple[Cell, ...]] = [
            ("reference voice, median (95% interval)", "stock", "compiled", "gain (95% interval)")
        ]
        for phase, title in PHASES.items():
            cells = [spread(getattr(side, phase)) for side in (self.stock, self.compiled)]
            rows.append((title, *cells, self.gains[phase]))
        processes = f"{self.settings.repeats + 2} processes each"
        rows.append(("every tensor identical", "", yes(self.identical), processes))
        about = f"{self.settings.seconds:g} s of reference, {where(self.machine, self.model)}"
        return [Section(rows, [*stats.few(self.settings.repeats), about])]

    def plots(self) -> list[Plot]:
        """Ratios."""
        gains = {title.removesuffix(", s"): self.gains[phase] for phase, title in PHASES.items()}
        return [Ratios("How many times faster than stock", gains)]


def run(source: str, settings: Settings) -> VoiceResult:
    """Measure; ``source`` as :func:`tts_compile.bench.models.load` takes it."""
    sides = {name: Side() for name in SIDES}
    calls: dict[str, list[dict[str, Any]]] = {name: [] for name in SIDES}
    with (
        tempfile.TemporaryDirectory(prefix="tts-compile-voice-") as name,
        Progress(2 * settings.repeats + 4) as progress,
    ):
        folder = Path(name)
        files = [
            make_reference_wav(folder / f"{i}.wav", seconds=settings.seconds * share)
            for i, share in enumerate((1, 0.9))
        ]

        def measure(repeats: int, caches: dict[str, Path]) -> None:
            ways = {
                side: functools.partial(_child, source, side, settings.device, files, cache)
                for side, cache in caches.items()
            }
            for side, done in alternation.alternate(ways, repeats, progress).items():
                calls[side] += [call.result for call in done]

        measure(1, {side: folder / f"cold-{side}" for side in SIDES})
        # What stock's first process has left there; the first of each side pages in the weights and the libraries.
        measure(1 + settings.repeats, dict.fromkeys(SIDES, folder / "cold-stock"))
    for side, (cold, _, *warm) in calls.items():
        sides[side].first_cold.append(cold["first"])
        for phase in ("first", "later", "repeated"):
            getattr(sides[side], phase).extend(found[phase] for found in warm)
    last = calls["compiled"][-1]
    return VoiceResult(
        settings=settings,
        model=last["model"],
        machine=machine.describe(),
        stock=sides["stock"],
        compiled=sides["compiled"],
        identical=len({json.dumps(found["digests"]) for done in calls.values() for found in done}) == 1,
        report=last["report"],
    )


def _child(source: str, side: str, device: str, files: Sequence[Path], numba_cache: Path) -> dict[str, Any]:
    arguments = ["-m", __name__, source, "--side", side, "--device", device, *map(str, files)]
    return child.run(arguments, f"the {side} side's voice", {"NUMBA_CACHE_DIR": str(numba_cache)}).found


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
                found["digests"].append(digests(tts.conds))
            found["report"] = fast.report().to_dict()
        found["model"] = describe(tts)
    print(json.dumps(found))
    return 0


def digests(conds: Any) -> dict[str, str | None]:
    """A hash of every tensor, by name."""
    parts = {**vars(conds.t3), **conds.gen}
    return {
        name: digest(part.detach().cpu().numpy()) if isinstance(part, torch.Tensor) else None
        for name, part in parts.items()
    }


if __name__ == "__main__":
    raise SystemExit(main())
