"""The reference voice, stock against compiled, in fresh processes that alternate."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from ..api import compile_model
from ..audio.reading import digest
from ..audio.synthetic_voice import make_reference_wav
from ..config import CompileConfig, ComponentPolicy
from ..measuring.interleaved import alternate, timed_call
from ..measuring.progress import Progress, Step
from ..measuring.stats import yes
from .models import describe, load, quiet
from .processes import in_fresh_process
from .result import SIDES, Repeated, Result, option

PHASES = ("first", "later", "repeated")


@dataclass(frozen=True, kw_only=True)
class Settings(Repeated):
    """Settings of the benchmark of the reference voice: the repeats are fresh processes.

    One more process of each side has an empty numba cache, and one more is not counted.
    """

    seconds: float = option(10.0, "of the first recording; the second one is a tenth shorter", least=1, most=600)


@dataclass(frozen=True, kw_only=True)
class VoiceResult(Result):
    """The figures of the reference voice.

    Attributes:
        identical: every tensor of ``tts.conds`` after every call, in every process, on both sides.
    """

    subject = "voice"
    title = "The reference voice, in fresh processes"
    called = ("voice_encoder", "reference")
    heading = "reference voice"
    titles: ClassVar[Mapping[str, str]] = {
        "first_cold": "first call, empty numba cache, s",
        "first": "first call of a process, s",
        "later": "later call with another file, s",
        "repeated": "call with a file that was read before, s",
    }

    identical: bool

    @property
    def kept(self) -> bool:
        """Returns whether the compiled side did what stock does."""
        return self.identical

    def notes(self) -> list[str]:
        """Returns what was compared, and the machine."""
        same = f"every tensor identical: {yes(self.identical)}, {self.settings.repeats + 2} processes each"
        return [*self.few, f"{same}; {self.settings.seconds:g} s of reference, {self.about}"]


def run(source: str, settings: Settings, step: Step | None = None) -> VoiceResult:
    """Measures; ``source`` is that of :func:`tts_compile.bench.models.load`."""
    with (
        tempfile.TemporaryDirectory(prefix="tts-compile-voice-") as name,
        Progress(2 * settings.repeats + 4) as progress,
    ):
        folder = Path(name)
        lengths = (settings.seconds, 0.9 * settings.seconds)
        files = [str(make_reference_wav(folder / f"{n}.wav", seconds=length)) for n, length in enumerate(lengths)]
        # After its first process, each side has the cache that stock's first process left.
        caches = {
            side: iter([folder / f"cold-{side}", *[folder / "cold-stock"] * (1 + settings.repeats)]) for side in SIDES
        }
        ways = {
            side: functools.partial(_in_process, source, side, settings.device, files, caches[side]) for side in SIDES
        }
        done = alternate(ways, 2 + settings.repeats, step or progress)
    found = {side: [call.result for call in calls] for side, calls in done.items()}
    last = found["compiled"][-1]
    return VoiceResult(
        settings=settings,
        model=last["model"],
        sides={side: _figures(*processes) for side, processes in found.items()},
        identical=all(each["digests"] == last["digests"] for processes in found.values() for each in processes),
        report=last["report"],
    )


def _figures(cold: dict[str, Any], _: dict[str, Any], *warm: dict[str, Any]) -> dict[str, list[float]]:
    """Returns the seconds of one side; its second process reads weights and libraries into memory."""
    return {"first_cold": [cold["first"]], **{phase: [found[phase] for found in warm] for phase in PHASES}}


def _in_process(
    source: str, side: str, device: str, files: Sequence[str], numba_caches: Iterator[Path]
) -> dict[str, Any]:
    environment = {"NUMBA_CACHE_DIR": str(next(numba_caches))}
    return in_fresh_process(
        f"the {side} side's voice", prepare_three, source, side, device, files, environment=environment
    )


def prepare_three(source: str, side: str, device: str, files: Sequence[str]) -> dict[str, Any]:
    """Loads the model, prepares three voices on one side, and returns the seconds and hashes of all tensors."""
    found: dict[str, Any] = {"digests": []}
    with quiet():
        tts = load(source, device)
        policy = ComponentPolicy(execution="stock" if side == "stock" else "auto")
        config = CompileConfig.off().replace(reference=policy, voice_encoder=policy)
        with compile_model(tts, config) as fast:
            for phase, file in zip(PHASES, (files[0], files[1], files[1])):
                _, found[phase] = timed_call(device, functools.partial(tts.prepare_conditionals, Path(file)))
                found["digests"].append(digests(tts.conds))
            found["report"] = fast.report().to_dict()
        found["model"] = describe(tts)
    return found


def digests(conds: Any) -> dict[str, str | None]:
    """Returns a hash of every tensor, by name."""
    parts = {**vars(conds.t3), **conds.gen}
    return {
        name: digest(part.detach().cpu().numpy()) if isinstance(part, torch.Tensor) else None
        for name, part in parts.items()
    }
