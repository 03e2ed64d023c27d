"""All components of one model, attached and detached together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from ..config import COMPONENTS, CompileConfig
from ..errors import UnsupportedModelError
from ..execution.process_lock import locked
from ..fallback import reason
from ..families.family import Family
from ..report import ComponentReport
from ..timing.blocks import Timings
from .compiled_component import CompiledComponent
from .component import Component, StockComponent
from .flow import FlowComponent
from .runtime import Runtime
from .seam import detach_all
from .t3 import T3Component
from .vocoder import VocoderComponent
from .voice import ReferenceComponent, VoiceEncoderComponent
from .watermark import WatermarkComponent


class ComponentSet:
    """Every component of a model.

    A component that cannot be made or attached stays stock, unless the policy is to raise.

    Args:
        tts: the stock model.
        family: of the model.
        config: what to run and how.
        timings: where calls are timed.

    Attributes:
        runtime: of the model.
        lock: entered for whole utterances: torch's generators are global, and compiling is for one thread at a time.
    """

    def __init__(self, tts: Any, family: Family, config: CompileConfig, timings: Timings) -> None:
        self.runtime = runtime = Runtime(family.device(tts), config, timings)
        makers = _makers(tts, family, runtime)
        self._components = {
            name: self._made(name, makers.get(name, f"{type(tts).__name__} has no {name}")) for name in COMPONENTS
        }
        self.lock: Callable[[], AbstractContextManager[None]] = runtime.lock
        if all(isinstance(component, StockComponent) for component in self._components.values()):
            self.lock = locked  # a fork does no harm to stock

    def __getitem__(self, name: str) -> Component:
        return self._components[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._components)

    @property
    def engines(self) -> dict[str, CompiledComponent]:
        """Returns the components that may compile something."""
        return {name: part for name, part in self._components.items() if isinstance(part, CompiledComponent)}

    def attach(self) -> None:
        """Attaches all components; one that cannot be attached is left to stock.

        After an interrupt, or where the policy is to raise, :meth:`detach` takes off those that were attached.
        """
        for name, component in self._components.items():
            try:
                component.attach()
            except Exception as error:
                self._components[name] = self._stock(name, error)

    def detach(self) -> None:
        """Detaches all components, or none."""
        detach_all(self._components.values())

    def give_up(self, name: str, why: str) -> None:
        """Leaves an attached component to stock for good, since its results differ from stock's."""
        component = self._components[name]
        component.detach()
        component.release()
        self._components[name] = StockComponent(name, self.runtime, why, failed="validate")

    def release(self) -> None:
        """Gives back the memory that only a compiled model needs; records what cannot be given back."""
        for component in self._components.values():
            try:
                component.release()
            except Exception as error:
                component.fallback.record("restore", reason(error), "what was kept is not given back")

    def report(self) -> dict[str, ComponentReport]:
        """Returns a row for each component."""
        return {name: component.report() for name, component in self._components.items()}

    def _made(self, name: str, maker: Callable[[], Component] | str) -> Component:
        if isinstance(maker, str):
            return StockComponent(name, self.runtime, maker)
        if getattr(self.runtime.config, name).execution == "stock":
            return StockComponent(name, self.runtime)
        try:
            return maker()
        except UnsupportedModelError as error:
            return StockComponent(name, self.runtime, str(error))
        except Exception as error:
            return self._stock(name, error)

    def _stock(self, name: str, error: Exception) -> Component:
        """Returns a stock component in place of one that has failed."""
        if self.runtime.config.fallback == "raise":
            raise error
        return StockComponent(name, self.runtime, reason(error), failed="attach")


def _makers(tts: Any, family: Family, runtime: Runtime) -> dict[str, Callable[[], Component]]:
    """Returns what makes each component that the family has."""
    makers: dict[str, Callable[[], Component]] = {}
    if (speech := family.speech) is not None:
        makers["t3"] = lambda: T3Component(tts, family, speech, runtime)
    if (s3gen := family.synthesis.attribute) is not None:
        makers["flow"] = lambda: FlowComponent(getattr(tts, s3gen), family, runtime)
        makers["vocoder"] = lambda: VocoderComponent(getattr(tts, s3gen), family, runtime)
        makers["reference"] = lambda: ReferenceComponent(tts, family, runtime)
    if (encoder := family.voice_encoder) is not None:
        makers["voice_encoder"] = lambda: VoiceEncoderComponent(getattr(tts, encoder), family, runtime)
    if (watermarker := family.watermarker) is not None:
        makers["watermark"] = lambda: WatermarkComponent(getattr(tts, watermarker), runtime)
    return makers
