"""The components of one model, and what they have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from ..config import COMPONENTS, CompileConfig
from ..errors import UnsupportedModelError
from ..execution.process_lock import Turn, alone
from ..fallback import reason
from ..report import ComponentReport
from ..timing.blocks import Timings
from .compiled_component import EngineComponent
from .component import Component, StockComponent
from .flow import FlowComponent
from .runtime import Shared
from .seam import attach_all, detach_all
from .t3 import T3Component
from .vocoder import VocoderComponent
from .voice import ReferenceComponent, VoiceEncoderComponent
from .watermark import WatermarkComponent


class Assembly:
    """Every component of a model, attached and detached together.

    A component that fails to be made or attached stays stock, unless the policy is to raise.

    Args:
        tts: the stock model.
        config: what to run and how.
        timings: where calls are timed; None keeps them for nobody.

    Attributes:
        turn: entered for whole utterances, which take turns: torch's generators are global, and compiling is for one
            thread at a time.
    """

    def __init__(self, tts: Any, config: CompileConfig, timings: Timings | None = None) -> None:
        self._config = config
        device = next(tts.s3gen.parameters()).device
        shared = Shared.of(device, config, timings or Timings(device))
        self._components = {name: self._made(name, maker) for name, maker in _makers(tts, config, shared).items()}
        self.turn: Callable[[], AbstractContextManager[None]] = shared.graphs.turn if shared.graphs else Turn()
        if all(isinstance(component, StockComponent) for component in self._components.values()):
            self.turn = alone  # nothing but stock

    def __getitem__(self, name: str) -> Component:
        return self._components[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._components)

    @property
    def engines(self) -> dict[str, EngineComponent]:
        """The components that may compile something."""
        return {name: part for name, part in self._components.items() if isinstance(part, EngineComponent)}

    def attach(self) -> None:
        """All or none."""
        attach_all([_Place(self, name) for name in self._components])

    def detach(self) -> None:
        """All or none."""
        detach_all(self._components.values())

    def attach_one(self, name: str) -> None:
        """Attach a component, or stock in its place."""
        try:
            self._components[name].attach()
        except Exception as error:
            self._components[name] = self._stock(name, error)

    def give_up(self, name: str, why: str) -> None:
        """Put stock in the place of an attached component that does not give what stock gives."""
        component = self._components[name]
        component.detach()
        component.release()
        self._components[name] = StockComponent(name, self._config, why, failed="validate")

    def release(self) -> None:
        """Give back the memory that only a compiled model needs, as far as that works: the model is stock already."""
        for component in self._components.values():
            try:
                component.release()
            except Exception as error:
                component.fallback.record("restore", reason(error), "what was kept is not given back")

    def report(self) -> dict[str, ComponentReport]:
        """A row for each."""
        return {name: component.report() for name, component in self._components.items()}

    def _made(self, name: str, maker: Callable[[], Component] | str) -> Component:
        if isinstance(maker, str):
            return StockComponent(name, self._config, maker)
        if getattr(self._config, name).execution == "stock":
            return StockComponent(name, self._config)
        try:
            return maker()
        except UnsupportedModelError as error:
            return StockComponent(name, self._config, str(error))
        except Exception as error:
            return self._stock(name, error)

    def _stock(self, name: str, error: Exception) -> Component:
        """In place of a component that has failed: better than no model."""
        if self._config.fallback == "raise":
            raise error
        return StockComponent(name, self._config, reason(error), failed="attach")


class _Place:
    """Of a component in its assembly."""

    def __init__(self, assembly: Assembly, name: str) -> None:
        self._assembly = assembly
        self._name = name

    def attach(self) -> None:
        self._assembly.attach_one(self._name)

    def detach(self) -> None:
        self._assembly[self._name].detach()


def _makers(tts: Any, config: CompileConfig, shared: Shared) -> dict[str, Callable[[], Component] | str]:
    """For each component what makes it, or why there is none."""
    makers: dict[str, Callable[[], Component]] = {
        "flow": lambda: FlowComponent(tts.s3gen, config, shared),
        "vocoder": lambda: VocoderComponent(tts.s3gen, config, shared),
        "reference": lambda: ReferenceComponent(tts, config, shared.timings),
        "watermark": lambda: WatermarkComponent(tts.watermarker, config, shared.timings),
    }
    if hasattr(tts, "t3"):  # a voice converter has neither
        makers["t3"] = lambda: T3Component(tts.t3, config, shared)
        makers["voice_encoder"] = lambda: VoiceEncoderComponent(tts.ve, config, shared.timings)
    return {name: makers.get(name, f"{type(tts).__name__} has no {name}") for name in COMPONENTS}
