"""Flow and vocoder called in one way, through the library or through stock, so that one test serves both."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

import tts_compile as tc
from speech import signal_to_error_db
from tts_compile.components.flow.engine import TOKENS

LEAST_DB = 60
# Traced by dynamo and run as traced, with native code: no wait for inductor.
QUICK = tc.ComponentPolicy(execution="inductor", backend="eager")
RUNG = TOKENS.rungs[0]


class Made(NamedTuple):
    """Results of a stage, the first of which callers want, and torch's generator after it."""

    results: tuple[Tensor, ...]
    state: Tensor

    @property
    def main(self) -> Tensor:
        return self.results[0]


def assert_alike(found: Made, expected: Made) -> None:
    assert len(found.results) == len(expected.results)
    for mine, stocks in zip(found.results, expected.results):
        assert mine.shape == stocks.shape
        assert signal_to_error_db(stocks, mine) > LEAST_DB
    assert torch.equal(found.state, expected.state)


def assert_equal(found: Made, expected: Made) -> None:
    assert all(torch.equal(mine, stocks) for mine, stocks in zip(found.results, expected.results))
    assert torch.equal(found.state, expected.state)


class Stage(ABC):
    """One of the two: how it is called, and the configuration in which it alone is not stock."""

    name: str  # of the component
    attribute: str  # of S3Gen

    def module(self, model: Any) -> Any:
        return getattr(model.s3gen, self.attribute)

    def config(self, policy: tc.ComponentPolicy) -> tc.CompileConfig:
        return tc.CompileConfig.off().replace(**{self.name: policy}, warmup_samples=0)

    @property
    def eager(self) -> tc.CompileConfig:
        return self.config(tc.ComponentPolicy(execution="eager"))

    @property
    def quick(self) -> tc.CompileConfig:
        return self.config(QUICK)

    def call(self, model: Any, length: int = 9, **changes: Any) -> Made:
        """Calls whatever answers for the stage on a model now."""
        return self._call(self.module(model).inference, length, **changes)

    def stock(self, model: Any, length: int = 9, **changes: Any) -> Made:
        """Calls the class's own method, whatever is attached to the instance."""
        module = self.module(model)
        return self._call(lambda **given: type(module).inference(module, **given), length, **changes)

    def _call(self, inference: Callable[..., Any], length: int, prompt: int = 10, **changes: Any) -> Made:
        given = {**self.arguments(length, prompt), **changes}
        torch.manual_seed(5)
        results = inference(**given)
        return Made(tuple(part.clone() for part in results if part is not None), torch.get_rng_state())

    @abstractmethod
    def arguments(self, length: int, prompt: int = 10) -> dict[str, Any]:
        """Returns the arguments of ``inference``; ``prompt`` is the length of the reference, where there is one."""

    def row(self, handle: tc.CompiledTTS) -> tc.ComponentReport:
        return handle.report().components[self.name]

    def on_copy(self, model: Any) -> Any:
        """The model with an instance of this stage of its own; the rest is shared."""
        copied, s3gen = copy.copy(model), copy.copy(model.s3gen)
        vars(s3gen)["_modules"] = dict(vars(model.s3gen)["_modules"])
        copied.s3gen = s3gen
        setattr(s3gen, self.attribute, copy.deepcopy(self.module(model)))
        return copied


class Flow(Stage):
    """Speech tokens to mel frames; the length is in tokens."""

    name = attribute = "flow"

    def arguments(self, length: int, prompt: int = 10) -> dict[str, Any]:
        return {
            "token": tokens(length),
            "token_len": torch.tensor([length]),
            "finalize": True,
            "n_timesteps": 3,
            **voice(prompt),
        }


class Vocoder(Stage):
    """Mel frames to a wave and its source; the length is in frames."""

    name, attribute = "vocoder", "mel2wav"

    def arguments(self, length: int, prompt: int = 10) -> dict[str, Any]:
        return {"speech_feat": mel(length)}


FLOW, VOCODER = Flow(), Vocoder()
STAGES: dict[str, Stage] = {"flow": FLOW, "vocoder": VOCODER}


def voice(count: int) -> dict[str, Any]:
    """A reference of so many tokens, 25 a second."""
    generator = torch.Generator().manual_seed(count)
    return {
        "prompt_token": torch.randint(0, 6561, (1, count), generator=generator),
        "prompt_token_len": torch.tensor([count]),
        "prompt_feat": torch.randn(1, 2 * count, 80, generator=generator) - 4,
        "prompt_feat_len": None,
        "embedding": torch.randn(1, 192, generator=generator),
    }


def tokens(count: int, rows: int = 1) -> Tensor:
    return torch.randint(0, 6561, (rows, count), generator=torch.Generator().manual_seed(count))


def mel(frames: int, rows: int = 1) -> Tensor:
    return torch.randn(rows, 80, frames, generator=torch.Generator().manual_seed(frames)) - 4
