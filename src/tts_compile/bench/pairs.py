"""Stock and compiled on one model in one process, called in turn on the same inputs with equal seeds."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from ..measuring import interleaved
from ..measuring.interleaved import Call
from ..measuring.stats import yes
from .models import Compiled, common, new_graphs
from .result import SIDES, Result, Row, ran
from .stages import Made


@dataclass(frozen=True, kw_only=True)
class PairResult(Result):
    """The figures that every comparison on one model has.

    Attributes:
        varied: the calls of other lengths, in words.
        inputs: the number of different inputs that are measured.
        tokens_identical: inputs whose speech tokens equal stock's in every repeat; None where there are no tokens.
        generator_identical: after every pair of calls.
        first_call_seconds: ``compile_model`` and the first compiled call, with an empty compile cache.
        compile_seconds: what the first call costs beyond a later one.
        warmup_seconds: :meth:`CompiledTTS.warmup` after it.
        later_graphs: compiled or captured after the warm-up, also by the :attr:`varied` calls.
    """

    varied: ClassVar[str] = ""

    inputs: int
    tokens_identical: int | None
    generator_identical: bool
    first_call_seconds: float
    compile_seconds: float
    warmup_seconds: float
    later_graphs: int

    @property
    def kept(self) -> bool:
        """Returns whether the compiled side did what stock does, each time."""
        return self.tokens_identical in (None, self.inputs) and self.generator_identical and self.later_graphs == 0

    @property
    def checks(self) -> dict[str, str]:
        """Returns what was compared and counted, in words."""
        tokens = self.tokens_identical
        return {
            **({} if tokens is None else {"tokens identical": f"{tokens} of {self.inputs}"}),
            "generator state identical": yes(self.generator_identical),
            f"graphs after the warm-up{self.varied}": str(self.later_graphs),
        }

    @property
    def proof(self) -> str:
        """Returns the line that says whether both sides did the same."""
        found = self.checks | {"all as stock": yes(self.passed)}
        return f"{self.settings.repeats} repeats; " + "; ".join(f"{name}: {value}" for name, value in found.items())

    def rows(self) -> list[Row]:
        """Returns the rows of all quantities, and of the first call."""
        return [*super().rows(), ("first call's extra, cold, s", "", f"{self.compile_seconds:.1f}", "")]

    def notes(self) -> list[str]:
        """Returns the proof, the model and what ran."""
        model = self.model
        sizes = (
            f"T3 {model['t3_parameters'] / 1e6:.0f} M in {model['t3_layers']} layers, "
            f"S3Gen {model['s3gen_parameters'] / 1e6:.0f} M parameters"
        )
        notes = [row["note"] for row in self.report["components"].values() if row["calls"] and row["note"]]
        return [*self.few, self.proof, "; ".join([sizes, self.about, ran(self.report), *notes])]


class Work(NamedTuple):
    """The calls of one subject.

    Attributes:
        calls: one for each input; each takes the name of a side.
        rate: frames or samples of audio a second.
        vary: makes calls of other lengths on the compiled side.
        together: speaks all texts as a batch, where that is measured.
    """

    calls: Sequence[Callable[[str], Made]]
    rate: float = 1.0
    vary: Callable[[], None] = lambda: None
    together: Callable[[], Made] | None = None


class Calls(NamedTuple):
    """The measured calls.

    Attributes:
        sides: by side, input and repeat.
        batch: by repeat; empty where not measured.
        figures: the fields of :class:`PairResult`.
    """

    sides: Mapping[str, list[list[Call[Made]]]]
    batch: list[Call[Made]]
    figures: dict[str, Any]


def call_in_turn(model: Compiled, settings: Any, work: Work) -> Calls:
    """Measures the first compiled call, warms up, calls the sides in turn, and makes calls of other lengths."""
    fast, attach_seconds, step = model
    device, seed = settings.device, settings.seed
    step("first calls")
    work.calls[0]("stock")  # not timed: reads the weights into memory and sets up libraries for both sides
    first_call = interleaved.call(functools.partial(work.calls[-1], "compiled"), device, seed)
    step("warm-up")
    warmup = fast.warmup()
    if work.together:
        work.together()
    later_graphs = new_graphs(fast)
    ways: dict[str, Callable[[], Made]] = {
        f"{side} {n}": functools.partial(call, side) for n, call in enumerate(work.calls) for side in SIDES
    }
    if work.together:
        ways["batch"] = work.together
    done = interleaved.alternate(ways, settings.repeats, step, device=device, seed=seed)
    sides = {side: [done[f"{side} {n}"] for n in range(len(work.calls))] for side in SIDES}
    stock, compiled = sides.values()
    step("other lengths")
    work.vary()
    tokens = [[call.result.tokens for call in (*one, *other)] for one, other in zip(stock, compiled)]
    first_call_seconds = attach_seconds + first_call.seconds
    figures = common(fast, settings) | {
        "inputs": len(work.calls),
        "tokens_identical": sum(all(t == same[0] for t in same) for same in tokens) if any(map(any, tokens)) else None,
        "generator_identical": all(map(interleaved.same_states, stock, compiled)),
        "first_call_seconds": first_call_seconds,
        "compile_seconds": first_call_seconds - statistics.median(interleaved.seconds(compiled[-1])),
        "warmup_seconds": warmup.total,
        "later_graphs": later_graphs(),
    }
    return Calls(sides, done.get("batch", []), figures)


def inference(module: Any) -> dict[str, Callable[..., Any]]:
    """Returns the method ``inference`` of both sides."""
    return {"stock": functools.partial(type(module).inference, module), "compiled": module.inference}
