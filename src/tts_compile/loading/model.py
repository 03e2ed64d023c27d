"""Loads a stock model as ``from_local`` does, in a fraction of the time and memory."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import CheckpointError, InputError, UnsupportedModelError
from ..fallback import reason
from ..families import Family, families, family_of
from ..families.checkpoint_files import VOICE
from ..utils.gc_pause import gc_paused
from .from_local import Build, Substitute

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def load_model(
    cls: Any,
    ckpt_dir: str | Path,
    device: Any = "cpu",
    *,
    dtype: torch.dtype | str | None = None,
    mmap: bool = True,
    strict: bool = True,
) -> Any:
    """Loads a checkpoint folder as ``cls.from_local(ckpt_dir, device)`` does, in a fraction of its time and memory.

    The result is an ordinary stock object whose tensors equal those of ``from_local``. Stock initialises every
    parameter at random and then overwrites it; this function never initialises parameters, and its weights are the
    files themselves, mapped into memory. The global random generators keep their state.

    Args:
        cls: ``ChatterboxTTS``, ``ChatterboxMultilingualTTS``, ``ChatterboxTurboTTS`` or ``ChatterboxVC``, or its name;
            with a name, chatterbox is imported here, faster than by an import statement.
        ckpt_dir: the checkpoint folder.
        device: device of the model.
        dtype: dtype of T3's floating-point weights: a torch dtype, ``"bf16"`` or ``"fp16"``; None and ``"model"`` keep
            the checkpoint's. Other parts keep theirs. T3 casts each voice to this dtype when it reads it.
        mmap: on a CPU, use the weights in the files, which must not be changed while the model is in use; False copies
            them into memory. A sum can be rounded differently when its weights have another address: with ``False``
            the model's results equal those of ``from_local`` bit for bit.
        strict: refuse tensors that do not belong to the model, and missing buffers; False ignores them where stock
            does. Missing parameters are always refused.

    Raises:
        CheckpointError: for files that are missing, damaged or of another model; it lists every problem, and is raised
            before any memory of the device is used.
        UnsupportedModelError: for another class.
        InputError: for a device that does not exist or an unknown dtype.
    """
    if isinstance(cls, str):
        cls = stock_class(cls)
    family, folder = family_of(cls, "load"), _folder(ckpt_dir)
    if not family.files.weights:
        raise UnsupportedModelError(f"the family {family.name!r} declares no checkpoint files")
    dtypes = _checked_dtype(dtype, family)
    _check_device(device)
    build = Build(family, dtypes, own_memory=not mmap, strict=strict)
    build.problems += _problems(folder, family)
    # Tensors that are made in inference mode cannot be used outside of it.
    with gc_paused(long_lived=True), torch.inference_mode(mode=False):
        if any((folder / name).is_file() for name in family.files.weights.values()):
            tts = build.run(cls, folder)
    if build.problems:
        raise CheckpointError(str(folder), family.class_name, tuple(build.problems)) from build.cause
    if dtypes:  # stock makes voices in fp32, which half weights refuse
        tts.t3.cond_enc.register_forward_pre_hook(cast_voice)
    _move(tts, family, device)
    return tts


def load_pretrained(
    cls: Any,
    device: Any = "cpu",
    *,
    dtype: torch.dtype | str | None = None,
    mmap: bool = True,
    strict: bool = False,
) -> Any:
    """Finds or downloads the published weights as ``cls.from_pretrained(device)`` does, and loads them quickly.

    Args:
        cls, device, dtype, mmap, strict: the arguments of :func:`load_model`; unless ``strict`` is True, tensors that
            stock ignores in its own files are ignored.

    Raises:
        CheckpointError, UnsupportedModelError, InputError: see :func:`load_model`; errors of the hub's client are
            raised as they are.
    """
    if isinstance(cls, str):
        cls = stock_class(cls)
    _checked_dtype(dtype, family_of(cls, "load"))  # before anything is fetched
    _check_device(device)

    def from_local(ckpt_dir: Any, device: Any) -> Any:
        return load_model(cls, ckpt_dir, device, dtype=dtype, mmap=mmap, strict=strict)

    return cls.from_pretrained.__func__(Substitute(cls, from_local=from_local), device)


def stock_class(name: str) -> Any:
    """Imports and returns a stock class by its name, such as ``"ChatterboxTTS"``.

    It is faster than ``from chatterbox.tts import ChatterboxTTS``, since garbage collection is paused.

    Raises:
        UnsupportedModelError: for an unknown name.
    """
    for family in families():
        if name == family.class_name:
            with gc_paused(long_lived=True):
                return family.load_class()
    known = ", ".join(family.class_name for family in families())
    raise UnsupportedModelError(f"there is no {name!r}; known classes: {known}")


def cast_voice(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Casts the voice, the first argument, to the dtype of the module's weights; its integers stay integers."""
    voice, *others = args
    return copy.copy(voice).to(dtype=next(module.parameters()).dtype), *others


def _folder(path: Any) -> Path:
    try:
        return Path(path)
    except TypeError as error:
        raise InputError(f"ckpt_dir must be a folder, got {path!r}") from error


def _checked_dtype(dtype: Any, family: Family) -> Mapping[str, torch.dtype]:
    """Returns the dtype for the file of T3's weights; nothing where the checkpoint's is kept."""
    if dtype is None or dtype == "model":
        return {}
    if "t3" not in family.files.weights:
        raise InputError(f"{family.class_name} has no T3, whose dtype could be {dtype!r}")
    found: Any = DTYPES.get(dtype, dtype) if isinstance(dtype, str) else dtype
    if found not in DTYPES.values():
        raise InputError(f"dtype must be one of {', '.join(DTYPES)}, 'model' or None, got {dtype!r}")
    return {family.files.weights["t3"]: found}


def _check_device(device: Any) -> None:
    """Raises for a device that does not exist; uses none of its memory."""
    try:
        found = torch.device("cpu" if device is None else device)
        if found.type == "cuda":
            count = torch.cuda.device_count()
            if (found.index or 0) >= count:
                raise RuntimeError(f"there are {count} CUDA devices")
        else:
            torch.empty(0, device=found)
    except (RuntimeError, TypeError, AssertionError) as error:  # torch without a backend raises one of these
        raise InputError(f"device {device!r} cannot be used: {reason(error)}") from error


def _problems(folder: Path, family: Family) -> list[str]:
    """Returns what is wrong with the files, apart from the content of the weights."""
    if not folder.is_dir():
        return ["there is no such folder"]
    missing = family.files.missing(folder)
    problems = [f"{name} is missing" for name in missing]
    if missing:
        foreign = [other for other in families() if not set(other.files.names) <= set(family.files.names)]
        others = [other.class_name for other in foreign if not other.files.missing(folder)]
        problems += [f"these are the files of {' or '.join(others)}"] if others else []
    for name in family.files.others:
        try:
            if name not in missing:
                json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            problems.append(f"{name}: {reason(error)}")
    try:
        if (folder / VOICE).exists():
            torch.load(folder / VOICE, map_location="cpu", weights_only=True)
    except Exception as error:  # torch has no base for the errors of damaged files
        problems.append(f"{VOICE}: {reason(error)}")
    return problems


def _move(tts: Any, family: Family, device: Any) -> None:
    """Moves every part of a model on the CPU to the device, as ``from_local`` does."""
    for part in vars(tts).values():
        if isinstance(part, nn.Module):
            part.to(device)
    tts.device = device
    family.voice.move(tts, device)
