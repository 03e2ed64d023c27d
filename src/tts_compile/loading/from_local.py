"""Stock's own ``from_local`` with parameters that are never initialised and weights that are never copied."""

from __future__ import annotations

import contextlib
import functools
import types
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
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

# Functions of torch, of tensors and of torch.nn.init that draw random numbers, take a generator and show in a mode.
_DRAWING = {
    "kaiming_uniform_",
    *("normal_", "uniform_", "random_", "bernoulli_", "exponential_", "cauchy_", "geometric_", "log_normal_"),
    *("rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial"),
}


class Build:
    """One run of a stock class's ``from_local`` on the CPU.

    The very code of ``from_local`` runs, with other globals: its modules are built without initialising parameters,
    and its files are mapped into memory and assigned to the modules. No class and no module is touched meanwhile.

    Args:
        family: of the class.
        dtypes: for a part of the model the type of its floating-point weights; others keep the model's own.
        own_memory: copy the weights, so that the files are not needed any more.
        strict: refuse what stock ignores, see :func:`tts_compile.load_model`.

    Attributes:
        problems: what is wrong with the files; the model is of no use unless there are none.
        cause: the error that was met, where one was.
    """

    def __init__(self, family: Family, dtypes: Mapping[str, torch.dtype], own_memory: bool, strict: bool) -> None:
        self.problems: list[str] = []
        self.cause: Exception | None = None
        self._family = family
        self._dtypes = {
            family.files.weights[part]: dtype for part, dtype in dtypes.items() if part in family.files.weights
        }
        self._own_memory = own_memory
        self._strict = strict
        self._without_weights: list[nn.Module] = []

    def run(self, cls: Any, folder: Path) -> Any:
        """The model; what goes wrong is added to :attr:`problems`.

        Raises:
            UnsupportedModelError: for a class that loads in another way than chatterbox's.
        """
        function: Any = getattr(cls.from_local, "__func__", None)
        if getattr(function, "__globals__", {}).get("__name__") != self._family.module_name:
            raise UnsupportedModelError(f"{cls.__name__}.from_local is not chatterbox's own; call it instead")
        try:
            tts = self._with_other_globals(function)(_Class(cls), folder, "cpu")
        except _NotOfTheFiles as passed:
            raise passed.error from passed.error.__cause__
        except Exception as error:  # those of tokenizers and torch.load share no base
            if is_out_of_memory(error) or isinstance(error, UnsupportedModelError):
                raise
            known = (*self._family.files.others, VOICE)  # weights that are no good do not end the run
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
        own["torch"] = _Torch(self._torch_load)
        return types.FunctionType(
            function.__code__, own, function.__name__, function.__defaults__, function.__closure__
        )

    def _file(self, path: str | Path, *args: Any, **options: Any) -> Stored:
        try:
            return mapped(path, *args, **options)
        except FileNotFoundError:  # which is known already
            return Unreadable(path)
        except Exception as error:  # what a damaged file raises is up to its format
            self.problems.append(f"{Path(path).name}: {reason(error)}")
            return Unreadable(path)

    def _torch_load(self, path: Any, *args: Any, **options: Any) -> Any:
        if Path(path).name in self._family.files.weights.values():
            return self._file(path, *args, **options)
        return torch.load(path, *args, **options)

    def _module(self, kind: Any, *args: Any, **options: Any) -> nn.Module:
        with _not_of_the_files(), _Quietly(initialise=False):
            module: nn.Module = kind(*args, **options)
        self._without_weights.append(module)
        vars(module)["load_state_dict"] = functools.partial(self._assign, module)
        return module

    def _assign(self, module: nn.Module, stored: Any, strict: bool = True) -> None:
        del vars(module)["load_state_dict"]
        self._without_weights.remove(module)
        if isinstance(stored, Unreadable):
            return
        if not isinstance(stored, Stored):
            raise _unknown_way(module)
        wanted, given = module.state_dict(), _renamed(module, stored)
        found = _problems(module, wanted, given, lenient=not (strict or self._strict))
        self.problems += [f"{stored.file}: {problem}" for problem in found]
        if found:
            return
        cast = self._dtypes.get(stored.file)
        dtypes = {
            name: cast if cast and tensor.is_floating_point() else tensor.dtype for name, tensor in wanted.items()
        }
        names = [name for name in wanted if name in given]
        shared = Counter(given[name].data_ptr() for name in names)

        def kept_as_it_is(name: str) -> bool:
            tensor = given[name]
            fits = tensor.dtype == dtypes[name] and tensor.stride() == wanted[name].stride()
            return fits and shared[tensor.data_ptr()] == 1 and not self._own_memory

        weights = {name: given[name] for name in names if kept_as_it_is(name)}
        copied = {name: given[name] for name in names if name not in weights}
        weights.update(
            stored.copies(copied, lambda name, it: torch.empty_like(wanted[name], dtype=dtypes[name]).copy_(it))
        )
        module.load_state_dict(weights, strict=False, assign=True)


class _NotOfTheFiles(Exception):  # noqa: N818 - it never leaves this file
    """Carries an error past what is made of those that damaged files cause."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


@contextlib.contextmanager
def _not_of_the_files() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise _NotOfTheFiles(error) from error


class _Quietly(TorchFunctionMode):
    """In this thread, what draws random numbers leaves the global generator alone, which others may be using.

    Args:
        initialise: False leaves parameters as their memory is; memory that is not written to is not taken.
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


class _Class:
    """A stock class, which makes its objects quietly."""

    def __init__(self, cls: Any) -> None:
        self._cls = cls

    def __call__(self, *args: Any, **options: Any) -> Any:
        with _not_of_the_files(), _Quietly(initialise=True):
            return self._cls(*args, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cls, name)


class _Torch:
    """Torch with another ``load``."""

    def __init__(self, load: Callable[..., Any]) -> None:
        self.load = load

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def _problems(
    module: nn.Module, wanted: Mapping[str, Tensor], stored: Mapping[str, Tensor], lenient: bool
) -> list[str]:
    """What keeps ``stored`` from taking the place of ``wanted``, tensor by tensor."""
    computed = _computed(module)
    if lenient:
        computed |= {name for name, _ in module.named_buffers()}
    problems = [f"{name} is missing" for name in wanted if name not in stored and name not in computed]
    if not lenient:
        problems += [f"{name} is not of this model" for name in stored if name not in wanted]
    for name, tensor in wanted.items():
        if name not in stored:
            continue
        given = stored[name]
        if given.shape != tensor.shape:
            problems.append(f"{name} has the shape {tuple(given.shape)} in place of {tuple(tensor.shape)}")
        elif given.dtype != tensor.dtype and not (given.is_floating_point() and tensor.is_floating_point()):
            problems.append(f"{name} holds {given.dtype} in place of {tensor.dtype}")
    return problems


def _renamed(module: nn.Module, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors by their names in this module, which may know older ones: ``weight_g`` of a weight norm."""
    given = dict(stored)
    for prefix, part in module.named_modules():
        for hook in part._load_state_dict_pre_hooks.values():
            hook(given, f"{prefix}." if prefix else "", {}, True, [], [], [])
    return given


def _computed(module: nn.Module) -> set[str]:
    """Buffers that files need not have, as chatterbox lists them."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, part in module.named_modules()
        for name in getattr(part, "ignore_state_dict_missing", ())
    }


def _unknown_way(module: nn.Module) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{type(module).__name__} is given its weights in a way that this version does not know; call from_local"
    )
