"""What stock's methods were given and gave, and the same calls made again."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..components.component import Component
from ..components.seam import Seam, attach_all, detach_all
from ..utils.random_state import RandomState

# Of the model, and of a voice converter: what a method leaves there that returns nothing.
_LEFT_BEHIND = {"conds", "ref_dict"}


Methods = dict[str, list[tuple[Any, str]]]  # by component: owners and names


@dataclass(frozen=True)
class Take:
    """What a call gave.

    Attributes:
        tensors: by where in the result they stood.
        after: the global generators after the call.
        heard: what was listened to meanwhile; empty where nothing was.
    """

    tensors: dict[str, Tensor]
    after: RandomState
    heard: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Call:
    """One call of a stock method.

    Attributes:
        component: the name of the component that replaces the method.
        method: as in ``"t3.inference"``; for messages.
        take: what stock gave.
    """

    component: str
    method: str
    take: Take
    _owner: Any
    _name: str
    _standing: Callable[..., Any]
    _leaves: bool
    _given: tuple[tuple[Any, ...], dict[str, Any]]
    _before: RandomState
    _inference: bool
    _device: torch.device

    def again(self) -> Any:
        """Whatever answers the method now, for the same input, from the same random numbers; its result."""
        return self._repeat(getattr(self._owner, self._name))

    def stock(self) -> Any:
        """What stood there when it was recorded likewise."""
        return self._repeat(self._standing)

    def played(self, heard: Sequence[Tensor] = ()) -> Take:
        """What :meth:`again` gives; ``heard`` is read when it has."""
        return _taken(self._owner, self.again(), self._device, heard)

    def _repeat(self, method: Callable[..., Any]) -> Any:
        args, kwargs = copy.deepcopy(self._given)
        if self._leaves:  # what an earlier call has left would pass for this one's
            for name in vars(self._owner).keys() & _LEFT_BEHIND:
                setattr(self._owner, name, None)
        self._before.restore()
        with torch.inference_mode(self._inference):
            return method(*args, **kwargs)


def methods_of(components: Mapping[str, Component]) -> Methods:
    """Those that components replace; components that replace none are left out."""
    return {
        name: [(seam.owner, seam.name) for seam in component.seams]
        for name, component in components.items()
        if component.seams
    }


@contextlib.contextmanager
def recorded(methods: Methods, device: torch.device, model: Any) -> Iterator[list[Call]]:
    """Inside, every call of some methods is written down; what stands there answers it.

    Args:
        methods: of the stock model.
        device: of the model.
        model: its T3's guided logits are listened to, where it has a T3.
    """
    calls: list[Call] = []

    def watch(component: str, owner: Any, name: str) -> Seam:
        standing = getattr(owner, name)

        def answer(*args: Any, **kwargs: Any) -> Any:
            given = copy.deepcopy((args, kwargs))
            before = RandomState(device)
            with _stock_logits(model, component, kwargs) as heard:
                result = standing(*args, **kwargs)
            take = _taken(owner, result, device, heard)
            method = f"{type(owner).__name__}.{name}"
            inference = torch.is_inference_mode_enabled()
            leaves = result is None
            calls.append(Call(component, method, take, owner, name, standing, leaves, given, before, inference, device))
            return result

        return Seam(owner, name, answer)

    taps = [watch(component, *place) for component, places in methods.items() for place in places]
    attach_all(taps)
    try:
        yield calls
    finally:
        detach_all(taps)


@contextlib.contextmanager
def _stock_logits(model: Any, component: str, settings: dict[str, Any]) -> Iterator[list[Tensor]]:
    """Guided logits (vocabulary,) of every step of stock's token loop, as it goes on."""
    heard: list[Tensor] = []
    if component != "t3":
        yield heard
        return
    weight = settings.get("cfg_weight", 0.5)

    def listen(_module: Any, _given: Any, logits: Tensor) -> None:
        conditional, unconditional = logits[0, -1], logits[-1, -1]
        heard.append(conditional + weight * (conditional - unconditional))

    hook = model.t3.speech_head.register_forward_hook(listen)
    try:
        yield heard
    finally:
        hook.remove()


def _taken(owner: Any, result: Any, device: torch.device, heard: Sequence[Tensor]) -> Take:
    if result is None:
        result = {name: getattr(owner, name, None) for name in _LEFT_BEHIND}
    tensors = {place: tensor.detach().clone() for place, tensor in _tensors(result)}
    return Take(tensors, RandomState(device), tuple(heard))


def _tensors(value: Any, place: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor or array in tuples, lists, dicts and dataclasses, and where it stands."""
    if isinstance(value, Tensor):
        yield place or "result", value
    elif isinstance(value, np.ndarray):
        yield place or "result", torch.from_numpy(value)
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from _tensors(part, f"{place}.{key}".lstrip("."))
    elif isinstance(value, (tuple, list)):
        for index, part in enumerate(value):
            yield from _tensors(part, f"{place}[{index}]")
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from _tensors({part.name: getattr(value, part.name) for part in dataclasses.fields(value)}, place)
