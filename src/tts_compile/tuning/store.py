"""Choices of policies, stored beside compiled code."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .. import cache
from ..audio.reading import Recording
from ..config import COMPONENTS, CompileConfig, ComponentPolicy
from ..errors import ConfigError
from ..fallback import reason
from ..families import family_of
from ..measuring import machine
from ..measuring.stats import Ratio
from ..utils import files
from ..utils.device import cpu_name
from .trial import Trial, Tuning

logger = logging.getLogger(__name__)

_FORMAT = 1  # of the files


# The fields of a configuration on which the best policy depends.
_ASKED = (*COMPONENTS, "memory_limit_gb", "compile_seconds")


def key(tts: Any, config: CompileConfig, texts: Sequence[str], recording: str | Path | None) -> dict[str, Any]:
    """Returns the device, versions, model, settings and inputs that a choice is for."""
    family = family_of(type(tts))
    device = family.device(tts)
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{_digest(cpu_name().encode())} {torch.get_num_threads()} threads"
    shapes = [
        f"{part}.{name} {tuple(weight.shape)} {weight.dtype}"
        for part in family.modules
        for name, weight in getattr(tts, part).named_parameters()
    ]
    return {
        "device": f"{device.type} {name}",
        "versions": machine.versions(),
        "code": _code(),
        "precision": torch.get_float32_matmul_precision(),
        "model": f"{type(tts).__name__} {_digest(' '.join(shapes).encode())}",
        "asked": {name: config.to_dict()[name] for name in _ASKED},
        "texts": _digest("\0".join(texts).encode("utf-8", "surrogatepass")),
        "recording": None if recording is None else Recording(recording).digest,
    }


@functools.cache
def _code() -> str:
    """Returns a digest of this library: another policy may be the fastest after a change."""
    package = Path(__file__).parents[1]
    sources = sorted(path for path in package.rglob("*") if path.suffix in (".py", ".cpp", ".h"))
    return _digest(b"".join(path.read_bytes() for path in sources))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def path(config: CompileConfig, belongs_to: dict[str, Any]) -> Path:
    """Returns the file of a choice: beside compiled code, accessible to its owner alone."""
    folder = files.own_folder(cache.make_folder(config.cache_dir) / cache.OWN_FOLDER)
    return folder / f"tuned-{_digest(json.dumps(belongs_to, sort_keys=True).encode())}.json"


def read(file: Path, belongs_to: dict[str, Any], config: CompileConfig) -> Tuning | None:
    """Returns a choice that was stored; None where the file is damaged or is for another key."""
    try:
        plain = json.loads(file.read_text(encoding="utf-8"))
        if plain["format"] != _FORMAT or plain["key"] != belongs_to:
            return None
        trials = tuple(
            Trial(**{
                **trial,
                "policy": ComponentPolicy(**trial["policy"]),
                "seconds": tuple(trial["seconds"]),
                "gain": _ratio(trial["gain"]),
            })
            for trial in plain["trials"]
        )  # fmt: skip
        chosen = {trial.component: trial.policy for trial in trials if trial.kept}
        return Tuning(
            config.replace(**chosen), trials, plain["complete"], belongs_to, plain["budget"], str(file), reused=True
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
        logger.warning("the choice in %s cannot be read, and is measured again: %s", file, reason(error))
        return None


def write(tuning: Tuning) -> None:
    """Stores a choice for :func:`read`; where that fails, a warning is logged and the choice is used all the same."""
    content = json.dumps({"format": _FORMAT, **tuning.to_dict()}, indent=1, allow_nan=False)
    try:
        with files.replaced(tuning.stored) as beside:
            beside.write_text(content, encoding="utf-8")
    except OSError as error:
        logger.warning("the choice cannot be stored in %s: %s", tuning.stored, reason(error))


def _ratio(plain: dict[str, Any] | None) -> Ratio | None:
    if plain is None:
        return None
    interval = plain["interval"]
    return Ratio(plain["value"], None if interval is None else (interval[0], interval[1]))
