"""Starts another process that compiles, so that this one can go on generating.

The code reaches this process through the cache folder. A thread of this process would be no alternative: in dynamo it
sets the global random generators back to their state at its start, while other threads draw from them.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from . import cache
from .config import COMPONENTS, CompileConfig, ComponentPolicy
from .fallback import reason
from .families import Family

logger = logging.getLogger(__name__)

_NOTHING_TO_COMPILE = ("voice_encoder", "reference", "watermark")
WeightNorm = tuple[str, str, int]  # path of the module, name of the weight, dimension
_WORKER = f"{__package__}.background_worker"  # by name: an import would be a circle


class BackgroundCompilation:
    """A process that compiles for a model of the same shapes, into the cache folder of its configuration.

    Args:
        tts: the model; its weights are not copied.
        family: family of the model.
        config: the configuration to compile.
    """

    def __init__(self, tts: Any, family: Family, config: CompileConfig) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="tts-compile-")
        stock = ComponentPolicy(execution="stock")
        config = config.replace(
            compile_in_background=False,
            fallback="raise",
            cache_dir=str(cache.root(config.cache_dir)),  # overrules the environment of the other process
            **dict.fromkeys(_NOTHING_TO_COMPILE, stock),
        )
        payload = {
            "class": type(tts),
            "parts": {name: _skeleton(getattr(tts, name)) for name in family.modules},
            "config": config,
            "threads": torch.get_num_threads(),
        }
        path = Path(self._folder.name) / "payload"
        path.write_bytes(pickle.dumps(payload))
        self._log = (Path(self._folder.name) / "log").open("w+", encoding="utf-8", errors="replace")
        self._process = subprocess.Popen(
            [sys.executable, "-m", _WORKER, str(path)],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )

    @property
    def running(self) -> bool:
        """Whether the process has not ended yet."""
        return self._process.poll() is None

    def wait(self) -> None:
        """Waits until the process has ended and logs a failure; a second call does nothing.

        A failure is only logged: the same compilation fails in this process too, where it becomes a fallback event.
        """
        status = self._process.wait()
        if self._log.closed:
            return
        self._log.seek(0)
        lines = self._log.read().strip().splitlines()
        self.stop()
        if status:
            logger.warning("compiling in the background failed: %s", lines[-1] if lines else f"exit status {status}")

    def stop(self) -> None:
        """Ends the process if it still runs and removes its files; a second call does nothing."""
        if self.running:
            self._process.kill()
            self._process.wait()
        self._log.close()
        self._folder.cleanup()


def _skeleton(module: nn.Module) -> tuple[nn.Module, list[WeightNorm]]:
    """Returns a copy of the module whose parameters have shapes and no values, and the weight norms taken out of it."""
    memo: dict[int, Any] = {
        id(parameter): nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
        for parameter in module.parameters()
    }
    skeleton = copy.deepcopy(module, memo)
    norms: list[WeightNorm] = []
    parts: Iterable[tuple[str, Any]] = skeleton.named_modules()
    for path, part in parts:
        part._forward_hooks.clear()  # transformers collects hidden states by hooks, which cannot be pickled
        part._forward_pre_hooks.clear()
        part._load_state_dict_pre_hooks.clear()  # those of weight norms; making the norm anew brings them back
        if parametrize.is_parametrized(part):  # torch refuses to pickle its class, which was made at run time
            part.__class__ = type(part).__bases__[0]
            for name, norm in part._modules.pop("parametrizations").named_children():
                part.register_parameter(name, norm.original1)
                norms.append((path, name, norm[0].dim))
    return skeleton, norms


def start(tts: Any, family: Family, config: CompileConfig) -> BackgroundCompilation | None:
    """Starts the process where the configuration asks for it and there is something to compile on a CPU."""
    on_cpu = family.device(tts).type == "cpu"
    if not (config.compile_in_background and on_cpu and _compiled(config)):
        return None
    try:
        return BackgroundCompilation(tts, family, config)
    except Exception as error:  # somebody else's addition to the model may be impossible to copy or pickle
        logger.warning("nothing is compiled in the background: %s", reason(error))
        return None


def eager_at_first(config: CompileConfig) -> CompileConfig:
    """Returns the configuration to use until the process has ended: components that it compiles run eagerly."""
    eager = {name: dataclasses.replace(getattr(config, name), execution="eager") for name in _compiled(config)}
    return config.replace(**eager)


def _compiled(config: CompileConfig) -> list[str]:
    """Returns the names of the components that the configuration may compile."""
    names = [name for name in COMPONENTS if name not in _NOTHING_TO_COMPILE]
    return [name for name in names if getattr(config, name).execution in ("auto", "inductor")]
