"""Records calls of stock methods and repeats them."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from ..components.component import Component
from ..components.seam import Seam, attach_all, detach_all
from ..families import Family, SpeechModel
from ..utils.random_state import RandomState

Methods = dict[str, list[tuple[Any, str]]]  # by component: owners and names


@dataclass(frozen=True)
class CallResult:
    """The result of a call and its side effects.

    Attributes:
        tensors: the tensors of the result, by their position in it.
        after: the global random generators after the call.
        logits: guided logits (vocabulary,) of every step of a speech model; empty for other methods.
    """

    tensors: dict[str, Tensor]
    after: RandomState
    logits: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Call:
    """One recorded call of a stock method.

    Attributes:
        component: the name of the component that replaces the method.
        owner, name: of the method.
        stock: the method that was called.
        given: its arguments.
        before: the global random generators before the call.
        inference: whether inference mode was on.
        left_behind: the attribute of the owner that a method without a result sets; None for a method with a result.
        result: of stock.
    """

    component: str
    owner: Any
    name: str
    stock: Callable[..., Any]
    given: tuple[tuple[Any, ...], dict[str, Any]]
    before: RandomState
    inference: bool
    left_behind: str | None
    result: CallResult

    @property
    def method(self) -> str:
        """Returns class and name of the method, such as ``"T3.inference"``, for messages."""
        return f"{type(self.owner).__name__}.{self.name}"

    def repeat(self) -> Any:
        """Calls the method as it is now, with the recorded arguments and random numbers; returns its result."""
        return self._call(getattr(self.owner, self.name))

    def repeat_stock(self) -> Any:
        """Calls the recorded method, with the recorded arguments and random numbers; returns its result."""
        return self._call(self.stock)

    def repeat_and_record(self, logits: Sequence[Tensor] = ()) -> CallResult:
        """Calls the method as :meth:`repeat` does; ``logits`` is read after the call."""
        return _recorded_result(self.owner, self.repeat(), self.left_behind, self.before.device, logits)

    def _call(self, method: Callable[..., Any]) -> Any:
        args, kwargs = copy.deepcopy(self.given)
        if self.left_behind and hasattr(self.owner, self.left_behind):  # the value of an earlier call would count
            setattr(self.owner, self.left_behind, None)
        self.before.restore()
        with torch.inference_mode(self.inference):
            return method(*args, **kwargs)


def methods_of(components: Mapping[str, Component]) -> Methods:
    """Returns the methods that components replace; components that replace none are left out."""
    return {
        name: [(seam.owner, seam.name) for seam in component.seams]
        for name, component in components.items()
        if component.seams
    }


@contextlib.contextmanager
def recorded(tts: Any, family: Family, methods: Methods) -> Iterator[list[Call]]:
    """Records every call of some methods inside the block; yields the list that they are added to.

    Args:
        tts: the stock model.
        family: its family.
        methods: the methods.
    """
    calls: list[Call] = []
    device = family.device(tts)

    def record(component: str, owner: Any, name: str) -> Seam:
        stock = getattr(owner, name)

        def recording(*args: Any, **kwargs: Any) -> Any:
            given = copy.deepcopy((args, kwargs))
            before = RandomState(device)
            logits: list[Tensor] = []
            with contextlib.ExitStack() as hooked:
                if component == "t3" and family.speech is not None:
                    weight = _guidance(family.speech, stock, args, kwargs)
                    hooked.enter_context(_recording_logits(getattr(owner, family.speech.head), weight, logits))
                result = stock(*args, **kwargs)
            left_behind = family.voice.attribute if result is None else None
            recorded_result = _recorded_result(owner, result, left_behind, device, logits)
            inference = torch.is_inference_mode_enabled()
            calls.append(Call(component, owner, name, stock, given, before, inference, left_behind, recorded_result))
            return result

        return Seam(owner, name, recording)

    seams = [record(component, *method) for component, found in methods.items() for method in found]
    attach_all(seams)
    try:
        yield calls
    finally:
        detach_all(seams)


def _guidance(speech: SpeechModel, method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    """Returns the strength of guidance that a call asks for."""
    if speech.guidance is None:
        return 0.0
    bound = inspect.signature(method).bind(*args, **kwargs)
    bound.apply_defaults()
    return float(bound.arguments[speech.guidance])


def _recording_logits(head: torch.nn.Module, weight: float, logits: list[Tensor]) -> RemovableHandle:
    """Adds the guided logits (vocabulary,) of every step of stock's token loop to a list, inside a ``with`` block."""

    def record(_module: Any, _given: Any, output: Tensor) -> None:
        rows = output.reshape(len(output), -1, output.shape[-1])[:, -1]  # (rows, vocabulary) of the last position
        logits.append(rows[0] + weight * (rows[0] - rows[-1]) if weight else rows[0].clone())

    return head.register_forward_hook(record)


def _recorded_result(
    owner: Any, result: Any, left_behind: str | None, device: torch.device, logits: Sequence[Tensor]
) -> CallResult:
    if left_behind is not None:
        result = {left_behind: getattr(owner, left_behind, None)}
    tensors = {position: tensor.detach().clone() for position, tensor in _tensors(result)}
    return CallResult(tensors, RandomState(device), tuple(logits))


def _tensors(value: Any, position: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yields every tensor or array in tuples, lists, dicts and dataclasses, with its position in them."""
    if isinstance(value, Tensor):
        yield position or "result", value
    elif isinstance(value, np.ndarray):
        yield position or "result", torch.from_numpy(value)
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from _tensors(part, f"{position}.{key}".lstrip("."))
    elif isinstance(value, (tuple, list)):
        for index, part in enumerate(value):
            yield from _tensors(part, f"{position}[{index}]")
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from _tensors({part.name: getattr(value, part.name) for part in dataclasses.fields(value)}, position)
