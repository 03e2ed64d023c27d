"""Load a stock model: the same object as ``from_local`` gives, in a fraction of its time and memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import CheckpointError, InputError
from ..fallback import reason
from ..families import Family, families, family_of
from ..families.checkpoint_files import VOICE
from ..utils.gc_pause import gc_paused
from .from_local import Build
from .half_precision import DTYPES, cast_inputs
from .imports import stock_class


def load_model(
    cls: Any,
    ckpt_dir: str | Path,
    device: Any = "cpu",
    *,
    dtype: torch.dtype | str | None = None,
    mmap: bool = True,
    strict: bool = True,
) -> Any:
    """Load a checkpoint folder as ``cls.from_local(ckpt_dir, device)`` does, in a fraction of its time and memory.

    The result is an ordinary stock object, equal to that of ``from_local`` tensor by tensor. Stock initialises every
    parameter at random and overwrites it; here parameters are never initialised, and the weights are the files
    themselves, mapped into memory. The global random generators are left as they are.

    Args:
        cls: ``ChatterboxTTS``, ``ChatterboxMultilingualTTS``, ``ChatterboxTurboTTS`` or ``ChatterboxVC``, or its name,
            in which case chatterbox is imported here, faster than by an import statement.
        ckpt_dir: the folder.
        device: where the model is to be.
        dtype: of T3's floating-point weights: a torch dtype, ``"bf16"`` or ``"fp16"``; None and ``"model"`` leave
            them as they are. The others keep theirs. A voice is cast to it as T3 reads it.
        mmap: on a CPU, the weights stay in the files, which must not be written to in place as long as the model is
            used; False copies them, which takes their memory. Sums of weights that lie elsewhere in memory may be
            rounded differently: without ``mmap`` the model speaks as that of ``from_local`` bit for bit.
        strict: refuse tensors that do not belong to the model, and missing buffers; False ignores them where stock
            does. Parameters that are missing are refused in any case.

    Raises:
        CheckpointError: for files that are missing, damaged or of another model, naming everything that is wrong with
            them, before any memory of the device is taken.
        UnsupportedModelError: for another class.
        InputError: for a device or dtype that there is none of.
    """
    if isinstance(cls, str):
        cls = stock_class(cls)
    family, folder = family_of(cls, "load"), _folder(ckpt_dir)
    dtypes = _checked_dtype(dtype, family)
    _check_device(device)
    build = Build(family, dtypes, own_memory=not mmap, strict=strict)
    build.problems += _problems(folder, family)
    # What is made here must serve outside inference mode too.
    with gc_paused(long_lived=True), torch.inference_mode(mode=False):
        if any((folder / name).is_file() for name in family.files.weights.values()):
            tts = build.run(cls, folder)
    if build.problems:
        raise CheckpointError(str(folder), family.class_name, tuple(build.problems)) from build.cause
    if dtypes:
        cast_inputs(tts)
    _move(tts, device)
    return tts


def load_pretrained(
    cls: Any,
    device: Any = "cpu",
    *,
    dtype: torch.dtype | str | None = None,
    mmap: bool = True,
    strict: bool = False,
) -> Any:
    """Find or download the published weights as ``cls.from_pretrained(device)`` does, and load them quickly.

    Args:
        cls, device, dtype, mmap, strict: as of :func:`load_model`; what stock ignores in its own files is ignored
            unless ``strict`` is True.

    Raises:
        CheckpointError, UnsupportedModelError, InputError: as :func:`load_model`; those of the hub's client pass.
    """
    if isinstance(cls, str):
        cls = stock_class(cls)
    _checked_dtype(dtype, family_of(cls, "load"))  # before anything is fetched
    _check_device(device)
    return cls.from_pretrained.__func__(_Finder(cls, dtype=dtype, mmap=mmap, strict=strict), device)


class _Finder:
    """In place of a class whose ``from_pretrained`` finds the files: has them loaded here."""

    def __init__(self, cls: Any, **options: Any) -> None:
        self._cls = cls
        self._options = options

    def from_local(self, ckpt_dir: Any, device: Any) -> Any:
        return load_model(self._cls, ckpt_dir, device, **self._options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cls, name)


def _folder(path: Any) -> Path:
    try:
        return Path(path)
    except TypeError as error:
        raise InputError(f"ckpt_dir must be a folder, got {path!r}") from error


def _checked_dtype(dtype: Any, family: Family) -> Mapping[str, torch.dtype]:
    if dtype is None or dtype == "model":
        return {}
    if "t3" not in family.files.weights:
        raise InputError(f"{family.class_name} has no T3, whose dtype could be {dtype!r}")
    found: Any = DTYPES.get(dtype, dtype) if isinstance(dtype, str) else dtype
    if found not in DTYPES.values():
        raise InputError(f"dtype must be one of {', '.join(DTYPES)}, 'model' or None, got {dtype!r}")
    return {"t3": found}


def _check_device(device: Any) -> None:
    """Raise for one that there is none of; takes no memory there."""
    try:
        found = torch.device("cpu" if device is None else device)
        if found.type == "cuda":
            count = torch.cuda.device_count()
            if (found.index or 0) >= count:
                raise RuntimeError(f"there are {count} CUDA devices")
        else:
            torch.empty(0, device=found)
    except (RuntimeError, TypeError, AssertionError) as error:  # torch without a backend raises any of them
        raise InputError(f"device {device!r} cannot be used: {reason(error)}") from error


def _problems(folder: Path, family: Family) -> list[str]:
    """Of the files, apart from the weights' content."""
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
    except Exception as error:  # what a damaged file raises is up to torch
        problems.append(f"{VOICE}: {reason(error)}")
    return problems


def _move(tts: Any, device: Any) -> None:
    """As ``from_local`` does for every part, which has loaded it to the CPU."""
    for part in vars(tts).values():
        if isinstance(part, nn.Module):
            part.to(device)
    tts.device = device
    if getattr(tts, "conds", None) is not None:
        tts.conds.to(device)
    if getattr(tts, "ref_dict", None) is not None:
        tts.ref_dict = {k: v.to(device) if torch.is_tensor(v) else v for k, v in tts.ref_dict.items()}
