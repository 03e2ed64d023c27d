"""The reference voice, stock against compiled, in fresh processes that alternate.

``python -m tts_compile.bench.voice SOURCE SIDE DEVICE FILE FILE`` is one of these processes; it prints one JSON object.
"""

from __future__ import annotations

import argparse
import functools
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..api import compile_model
from ..audio.reading import digest
from ..audio.synthetic_voice import make_reference_wav
from ..config import CompileConfig, ComponentPolicy
from ..measuring.interleaved import alternate, timed_call
from ..measuring.progress import Progress, Step
from ..measuring.stats import Ratio, ratio_of_medians, spread, yes
from .models import describe, load, quiet
from .plots import Plot, Ratios
from .processes import SIDES, run_python
from .result import INTERVAL, Repeated, Result, Row, Section, option

PHASES = {
    "first_cold": "first call, empty numba cache, s",
    "first": "first call of a process, s",
    "later": "later call with another file, s",
    "repeated": "call with a file that was read before, s",
}


@dataclass(frozen=True, kw_only=True)
class Settings(Repeated):
    """Settings of the benchmark of the reference voice: the repeats are fresh processes.

    One more process of each side has an empty numba cache, and one more is not counted.
    """

    seconds: float = option(10.0, "of the first recording; the second one is a tenth shorter", least=1, most=600)


@dataclass
class Side:
    """The raw seconds of one side: a value per fresh process, for ``first_cold`` a single one."""

    first_cold: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    later: list[float] = field(default_factory=list)
    repeated: list[float] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class VoiceResult(Result):
    """The figures of the reference voice.

    Attributes:
        identical: every tensor of ``tts.conds`` after every call, in every process, on both sides.
    """

    subject = "voice"
    title = "The reference voice, in fresh processes"
    called = ("voice_encoder", "reference")

    stock: Side
    compiled: Side
    identical: bool

    @property
    def kept(self) -> bool:
        """Returns whether the compiled side did what stock does."""
        return self.identical

    @property
    def gains(self) -> dict[str, Ratio]:
        """Returns how many times faster the compiled side is."""
        return {p: ratio_of_medians(getattr(self.stock, p), getattr(self.compiled, p)) for p in PHASES}

    def sections(self) -> list[Section]:
        """Returns one table."""
        rows: list[Row] = [(f"reference voice, median {INTERVAL}", *SIDES, f"gain {INTERVAL}")]
        for phase, title in PHASES.items():
            cells = [spread(getattr(side, phase)) for side in (self.stock, self.compiled)]
            rows.append((title, *cells, self.gains[phase]))
        processes = f"{self.settings.repeats + 2} processes each"
        rows.append(("every tensor identical", "", yes(self.identical), processes))
        return [Section(rows, [*self.few, f"{self.settings.seconds:g} s of reference, {self.about}"])]

    def plots(self) -> list[Plot]:
        """Returns ratios."""
        gains = {title.removesuffix(", s"): self.gains[phase] for phase, title in PHASES.items()}
        return [Ratios("How many times faster than stock", gains)]


def run(source: str, settings: Settings, step: Step | None = None) -> VoiceResult:
    """Measures; ``source`` is that of :func:`tts_compile.bench.models.load`."""
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
            for side, done in alternate(ways, repeats, step or progress).items():
                calls[side] += [call.result for call in done]

        measure(1, {side: folder / f"cold-{side}" for side in SIDES})
        # With the cache that stock's first process left; each side's first reads weights and libraries into memory.
        measure(1 + settings.repeats, dict.fromkeys(SIDES, folder / "cold-stock"))
    sides = {
        side: Side([cold["first"]], **{p: [found[p] for found in warm] for p in ("first", "later", "repeated")})
        for side, (cold, _, *warm) in calls.items()
    }
    last = calls["compiled"][-1]
    return VoiceResult(
        settings=settings,
        model=last["model"],
        stock=sides["stock"],
        compiled=sides["compiled"],
        identical=len({json.dumps(found["digests"]) for done in calls.values() for found in done}) == 1,
        report=last["report"],
    )


def _child(source: str, side: str, device: str, files: Sequence[Path], numba_cache: Path) -> dict[str, Any]:
    arguments = ["-m", __name__, source, side, device, *map(str, files)]
    return run_python(arguments, f"the {side} side's voice", {"NUMBA_CACHE_DIR": str(numba_cache)}).found


def main(argv: Sequence[str] | None = None) -> int:
    """Loads the model, prepares three voices on one side, and prints the seconds."""
    parser = argparse.ArgumentParser(description="Seconds of the first, a later and a repeated reference.")
    parser.add_argument("source", help="checkpoint folder, or 'pretrained'")
    parser.add_argument("side", choices=SIDES)
    parser.add_argument("device")
    parser.add_argument("files", nargs=2, type=Path, help="two recordings")
    args = parser.parse_args(argv)
    found: dict[str, Any] = {"digests": []}
    with quiet():
        tts = load(args.source, args.device)
        policy = ComponentPolicy(execution="stock" if args.side == "stock" else "auto")
        config = CompileConfig.off().replace(reference=policy, voice_encoder=policy)
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
    """Returns a hash of every tensor, by name."""
    parts = {**vars(conds.t3), **conds.gen}
    return {
        name: digest(part.detach().cpu().numpy()) if isinstance(part, torch.Tensor) else None
        for name, part in parts.items()
    }


if __name__ == "__main__":
    raise SystemExit(main())
