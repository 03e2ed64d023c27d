"""Choices kept beside compiled code, and what each belongs to."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from .. import _compat, files
from ..bench import machine
from ..bench.stats import Ratio
from ..config import COMPONENTS, CompileConfig, ComponentPolicy
from ..errors import ConfigError
from ..fallback import reason
from .trial import Trial, Tuning

logger = logging.getLogger(__name__)

_FORMAT = 1  # of the files


def key(tts: Any, config: CompileConfig) -> dict[str, Any]:
    """What a choice belongs to."""
    device = next(tts.s3gen.parameters()).device
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{hashlib.sha256(_compat.cpu_name().encode()).hexdigest()[:16]} {torch.get_num_threads()} threads"
    shapes = [
        f"{part}.{name} {tuple(weight.shape)} {weight.dtype}"
        for part in ("t3", "s3gen", "ve")
        if hasattr(tts, part)
        for name, weight in getattr(tts, part).named_parameters()
    ]
    return {
        "device": f"{device.type} {name}",
        "versions": machine.versions(),
        "model": f"{type(tts).__name__} {hashlib.sha256(' '.join(shapes).encode()).hexdigest()[:16]}",
        "asked": {name: asdict(getattr(config, name)) for name in COMPONENTS},
    }


def path(config: CompileConfig, belongs_to: dict[str, Any]) -> Path:
    """Where the choice is kept: beside compiled code, for its owner alone."""
    folder = files.own_folder(Path(config.cache_dir or _compat.inductor_cache_dir()))
    folder = files.own_folder(folder / "tts_compile")
    digest = hashlib.sha256(json.dumps(belongs_to, sort_keys=True).encode()).hexdigest()[:16]
    return folder / f"tuned-{digest}.json"


def read(file: Path, belongs_to: dict[str, Any], config: CompileConfig) -> Tuning | None:
    """A choice made before; what is damaged or belongs to something else is measured again."""
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
            config.replace(**chosen), trials, belongs_to, plain["budget"], plain["complete"], str(file), reused=True
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
        logger.warning("the choice in %s cannot be read, and is made again: %s", file, reason(error))
        return None


def write(tuning: Tuning) -> None:
    """Keep a choice where :func:`read` finds it."""
    content = json.dumps({"format": _FORMAT, **tuning.to_dict()}, indent=1, allow_nan=False)
    with files.replaced(tuning.stored) as beside:
        beside.write_text(content, encoding="utf-8")


def _ratio(plain: dict[str, Any] | None) -> Ratio | None:
    if plain is None:
        return None
    interval = plain["interval"]
    return Ratio(plain["value"], None if interval is None else (interval[0], interval[1]))
