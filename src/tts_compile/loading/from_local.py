"""Runs a stock class's ``from_local`` without initialising parameters and without copying weights."""

from __future__ import annotations

import functools
import types
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import UnsupportedModelError
from ..fallback import reason
from ..families import Family
from ..families.checkpoint_files import VOICE
from ..utils.device import is_out_of_memory
from .mapped_files import Stored, Unreadable, mapped

# Functions that draw random numbers and take a generator, of torch, of tensors and of torch.nn.init; only those that a
# TorchFunctionMode sees.
_DRAWING = {
    "kaiming_uniform_",
    *("normal_", "uniform_", "random_", "bernoulli_", "exponential_", "cauchy_", "geometric_", "log_normal_"),
    *("rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial"),
}


@dataclass
class Build:
    """One run of a stock class's ``from_local`` on the CPU.

    The code of ``from_local`` runs with other globals: its modules are built without initialising parameters, and its
    files are mapped into memory and assigned to the modules. No class and no module is changed, so that other threads
    are not affected.

    Attributes:
        family: family of the class.
        dtypes: for the files of some parts, the dtype of their floating-point weights; other parts keep the model's.
        own_memory: copy the weights, so that the files are not needed any more.
        strict: refuse tensors that stock ignores; see :func:`tts_compile.load_model`.
        problems: what is wrong with the files; the model must not be used if there are any.
        cause: the error behind the last problem; None for problems found by comparison.
    """

    family: Family
    dtypes: Mapping[str, torch.dtype]
    own_memory: bool
    strict: bool
    problems: list[str] = field(default_factory=list)
    cause: Exception | None = None
    _without_weights: list[nn.Module] = field(default_factory=list)
    _error_of_code: Exception | None = None

    def run(self, cls: Any, folder: Path) -> Any:
        """Returns the model; adds what is wrong with the files to :attr:`problems`.

        Raises:
            UnsupportedModelError: for a class whose ``from_local`` is not the family's, or assigns weights in an
                unknown way.
        """
        function: Any = getattr(cls.from_local, "__func__", None)
        if getattr(function, "__globals__", {}).get("__name__") != self.family.module_name:
            raise UnsupportedModelError(f"{cls.__name__}.from_local is not chatterbox's own; call it instead")
        build = functools.partial(self._built, cls, initialise=True)
        try:
            tts = self._with_other_globals(function)(Substitute(cls, build), folder, "cpu")
        except Exception as error:  # the errors of tokenizers and torch.load share no base
            if error is self._error_of_code or is_out_of_memory(error) or isinstance(error, UnsupportedModelError):
                raise
            known = (*self.family.files.others, VOICE)  # unreadable weights do not end the run
            if not any(problem.startswith(known) for problem in self.problems):
                self.problems.append(reason(error))
                self.cause = error
            return None
        if self._without_weights and not self.problems:
            raise _unknown_way(self._without_weights[0])
        return tts

    def _with_other_globals(self, function: types.FunctionType) -> Callable[..., Any]:
        from safetensors.torch import load_file

        own = dict(function.__globals__)
        for name, value in function.__globals__.items():
            if isinstance(value, type) and issubclass(value, nn.Module):
                own[name] = functools.partial(self._module, value)
            elif value is load_file:
                own[name] = self._file
        own["torch"] = Substitute(torch, load=self._torch_load)
        return types.FunctionType(
            function.__code__, own, function.__name__, function.__defaults__, function.__closure__
        )

    def _file(self, path: str | Path, *args: Any, **options: Any) -> Stored:
        try:
            return mapped(path, *args, **options)
        except FileNotFoundError:  # is among the problems already
            return Unreadable(path)
        except Exception as error:  # each file format has its own errors for damaged files
            self.problems.append(f"{Path(path).name}: {reason(error)}")
            return Unreadable(path)

    def _torch_load(self, path: Any, *args: Any, **options: Any) -> Any:
        if Path(path).name in self.family.files.weights.values():
            return self._file(path, *args, **options)
        return torch.load(path, *args, **options)

    def _built(self, kind: Any, *args: Any, initialise: bool, **options: Any) -> Any:
        """Calls a class; remembers an error, which is not the files' fault."""
        try:
            with _OwnGenerator(initialise):
                return kind(*args, **options)
        except Exception as error:
            self._error_of_code = error
            raise

    def _module(self, kind: Any, *args: Any, **options: Any) -> nn.Module:
        module: nn.Module = self._built(kind, *args, initialise=False, **options)
        self._without_weights.append(module)
        vars(module)["load_state_dict"] = functools.partial(self._load_state_dict, module)
        return module

    def _load_state_dict(self, module: nn.Module, stored: Any, strict: bool = True) -> None:
        """Replaces the method of a module for one call."""
        del vars(module)["load_state_dict"]
        self._without_weights.remove(module)
        if isinstance(stored, Unreadable):
            return
        if not isinstance(stored, Stored):
            raise _unknown_way(module)
        dtype, lenient = self.dtypes.get(stored.file), not (strict or self.strict)
        found = assign_weights(module, stored, dtype, own_memory=self.own_memory, lenient=lenient)
        self.problems += [f"{stored.file}: {problem}" for problem in found]


class Substitute:
    """An object that has some attributes of its own and otherwise those of another object.

    Args:
        original: the other object.
        call: the function that is called in place of the other object.
        attributes: its own attributes.
    """

    def __init__(self, original: Any, call: Callable[..., Any] | None = None, **attributes: Any) -> None:
        self._original = original
        self._call = call or original
        vars(self).update(attributes)

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self._call(*args, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)


class _OwnGenerator(TorchFunctionMode):
    """A mode in which this thread draws random numbers from a generator of its own: others may use the global one.

    Args:
        initialise: False skips functions that write to parameters; memory that is never written to is not provided
            by the system.
    """

    def __init__(self, initialise: bool) -> None:
        super().__init__()
        self._initialise = initialise
        self._generator = torch.Generator()
        self._generator.seed()

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if not self._initialise and name.endswith("_") and not name.endswith("__"):  # in place
            tensor = args[0] if args else kwargs.get("tensor")
            if isinstance(tensor, nn.Parameter):
                return tensor
        if name in _DRAWING and kwargs.get("generator") is None:
            kwargs = {**kwargs, "generator": self._generator}
        return func(*args, **kwargs)


def assign_weights(
    module: nn.Module, stored: Stored, dtype: torch.dtype | None, *, own_memory: bool, lenient: bool
) -> list[str]:
    """Makes the tensors of a file the module's parameters and buffers, unless there are problems, which it returns.

    Tensors are copied where the module needs another dtype or order of memory, or where several of them share memory.

    Args:
        module: the module; its own tensors need not be initialised.
        stored: the tensors of the file.
        dtype: dtype of floating-point weights; None keeps the module's.
        own_memory: copy every tensor.
        lenient: ignore unknown tensors and missing buffers.
    """
    wanted, given = module.state_dict(), _renamed(module, stored)
    if problems := _problems(module, wanted, given, lenient):
        return problems
    names = [name for name in wanted if name in given]
    dtypes = {name: dtype if dtype and wanted[name].is_floating_point() else wanted[name].dtype for name in names}
    users = Counter(given[name].data_ptr() for name in names)

    def fits(name: str) -> bool:
        tensor = given[name]
        same = tensor.dtype == dtypes[name] and tensor.stride() == wanted[name].stride()
        return same and users[tensor.data_ptr()] == 1

    def copied(name: str, tensor: Tensor) -> Tensor:
        return torch.empty_like(wanted[name], dtype=dtypes[name]).copy_(tensor)

    weights = {} if own_memory else {name: given[name] for name in names if fits(name)}
    weights.update(stored.copies({name: given[name] for name in names if name not in weights}, copied))
    module.load_state_dict(weights, strict=False, assign=True)
    return []


def _problems(module: nn.Module, wanted: Mapping[str, Tensor], given: Mapping[str, Tensor], lenient: bool) -> list[str]:
    """Returns why tensors cannot be assigned, one problem for each of them."""
    optional = _computed(module)
    if lenient:
        optional |= {name for name, _ in module.named_buffers()}
    problems = [f"{name} is missing" for name in wanted if name not in given and name not in optional]
    if not lenient:
        problems += [f"{name} does not belong to this model" for name in given if name not in wanted]
    for name, tensor in wanted.items():
        if name not in given:
            continue
        found = given[name]
        if found.shape != tensor.shape:
            problems.append(f"{name} has the shape {tuple(found.shape)} instead of {tuple(tensor.shape)}")
        elif found.dtype != tensor.dtype and not (found.is_floating_point() and tensor.is_floating_point()):
            problems.append(f"{name} holds {found.dtype} instead of {tensor.dtype}")
    return problems


def _renamed(module: nn.Module, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors by their names in this module; weight norms also accept older names, such as ``weight_g``."""
    given = dict(stored)
    for prefix, part in module.named_modules():
        for hook in part._load_state_dict_pre_hooks.values():
            hook(given, f"{prefix}." if prefix else "", {}, True, [], [], [])
    return given


def _computed(module: nn.Module) -> set[str]:
    """Returns the names of buffers that chatterbox computes itself and lists as optional in files."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, part in module.named_modules()
        for name in getattr(part, "ignore_state_dict_missing", ())
    }


def _unknown_way(module: nn.Module) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"from_local gives {type(module).__name__} its weights in an unknown way; call it instead"
    )
