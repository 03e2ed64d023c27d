"""Starts another process that compiles, so that this one can go on generating meanwhile.

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
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from . import cache
from .config import COMPONENTS, CompileConfig, ComponentPolicy
from .fallback import reason
from .families import Family

logger = logging.getLogger(__name__)

_NOTHING_TO_COMPILE = ("voice_encoder", "reference", "watermark")
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
        with path.open("wb") as file:
            _Pickler(file).dump(payload)
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


def _skeleton(module: nn.Module) -> nn.Module:
    """Returns a copy of the module whose parameters have shapes and no values."""
    memo: dict[int, Any] = {
        id(parameter): nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
        for parameter in module.parameters()
    }
    skeleton = copy.deepcopy(module, memo)
    for part in skeleton.modules():  # transformers collects hidden states by hooks, which cannot be pickled
        part._forward_hooks.clear()
        part._forward_pre_hooks.clear()
        part._load_state_dict_pre_hooks.clear()  # those of weight norms; making the norm anew brings them back
    return skeleton


class _Pickler(pickle.Pickler):
    """A pickler that also takes modules with weight norms, which torch refuses to pickle."""

    def reducer_override(self, obj: Any) -> Any:
        if not (isinstance(obj, nn.Module) and parametrize.is_parametrized(obj)):
            return NotImplemented
        state = dict(vars(obj))
        parts = dict(state["_modules"])
        norms = parts.pop("parametrizations")
        state["_modules"] = parts
        weights = {name: (norm[0].dim, norm.original1) for name, norm in norms.items()}
        return _with_norms, (type(obj).__bases__[0], state, weights)


def _with_norms(
    kind: type[nn.Module], state: dict[str, Any], weights: dict[str, tuple[int, nn.Parameter]]
) -> nn.Module:
    """Makes the module that :class:`_Pickler` took apart."""
    module = kind.__new__(kind)
    vars(module).update(state)
    for name, (dim, weight) in weights.items():
        module.register_parameter(name, weight)
        parametrizations.weight_norm(module, name, dim)
    module.get_submodule("parametrizations").train(module.training)
    return module


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


def meanwhile(config: CompileConfig) -> CompileConfig:
    """Returns the configuration to use until the process has ended: components that it compiles run eagerly."""
    eager = {name: dataclasses.replace(getattr(config, name), execution="eager") for name in _compiled(config)}
    return config.replace(**eager)


def _compiled(config: CompileConfig) -> list[str]:
    """Returns the names of the components that the configuration may compile."""
    names = [name for name in COMPONENTS if name not in _NOTHING_TO_COMPILE]
    return [name for name in names if getattr(config, name).execution in ("auto", "inductor")]
