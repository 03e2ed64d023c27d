"""Compiling in another process, while this one goes on speaking."""

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

logger = logging.getLogger(__name__)

# In dynamo a thread of this process would put the global generators back to where they stood when it began, under the
# feet of whoever draws meanwhile. What another process compiles reaches this one through the cache on disk.
_PARTS = ("t3", "s3gen")  # what is compiled
_NOTHING_TO_COMPILE = ("voice_encoder", "reference", "watermark")


class BackgroundCompilation:
    """A process that compiles for a model of the same shapes, into the cache folder of its configuration.

    Args:
        tts: the model; its weights stay here.
        config: what to compile.
    """

    def __init__(self, tts: Any, config: CompileConfig) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="tts-compile-")
        stock = ComponentPolicy(execution="stock")
        config = config.replace(
            compile_in_background=False,
            fallback="raise",
            cache_dir=str(cache.root(config.cache_dir)),  # whatever the environment says over there
            **dict.fromkeys(_NOTHING_TO_COMPILE, stock),
        )
        payload = {
            "class": type(tts),
            "parts": {name: _skeleton(getattr(tts, name)) for name in _PARTS if hasattr(tts, name)},
            "config": config,
            "threads": torch.get_num_threads(),
        }
        path = Path(self._folder.name) / "payload"
        with path.open("wb") as file:
            _Pickler(file).dump(payload)
        self._log = (Path(self._folder.name) / "log").open("w+", encoding="utf-8", errors="replace")
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(path)],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )

    @property
    def running(self) -> bool:
        """Whether it has not come to an end."""
        return self._process.poll() is None

    def wait(self) -> None:
        """Wait for the end, and log why it failed, if it did: what fails there fails here too, and is an event then.

        Doing it twice is harmless.
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
        """End it, if need be, and clean up; doing it twice is harmless."""
        if self.running:
            self._process.kill()
            self._process.wait()
        self._log.close()
        self._folder.cleanup()


def _skeleton(module: nn.Module) -> nn.Module:
    """The same module with parameters that have shapes and no values."""
    memo: dict[int, Any] = {
        id(parameter): nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
        for parameter in module.parameters()
    }
    skeleton = copy.deepcopy(module, memo)
    for part in skeleton.modules():  # transformers collects hidden states by hooks, which cannot be pickled
        part._forward_hooks.clear()
        part._forward_pre_hooks.clear()
        part._load_state_dict_pre_hooks.clear()  # weight norm's; it comes back with the norm
    return skeleton


class _Pickler(pickle.Pickler):
    """Also pickles modules with weight norms, of which torch pickles the weights alone."""

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
    module = kind.__new__(kind)
    vars(module).update(state)
    for name, (dim, weight) in weights.items():
        module.register_parameter(name, weight)
        parametrizations.weight_norm(module, name, dim)
    module.get_submodule("parametrizations").train(module.training)
    return module


def _fleshed_out(module: nn.Module) -> nn.Module:
    """Parameters of zeros, whose memory is not taken until it is written to."""

    def values(tensor: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(tensor, device="cpu") if tensor.is_meta else tensor

    module._apply(values)
    return module


def main(path: str) -> None:
    """What the other process does."""
    from .api import compile_model

    payload = pickle.loads(Path(path).read_bytes())  # written by the parent into a folder of its own
    torch.set_num_threads(payload["threads"])
    tts = payload["class"].__new__(payload["class"])
    for name, part in payload["parts"].items():
        setattr(tts, name, _fleshed_out(part))
    compile_model(tts, payload["config"]).warmup()


def start(tts: Any, config: CompileConfig) -> BackgroundCompilation | None:
    """Have another process compile, where that is wanted and there is something to: on a CPU."""
    device = next(tts.s3gen.parameters()).device
    if not (config.compile_in_background and device.type == "cpu" and _compiled(config)):
        return None
    try:
        return BackgroundCompilation(tts, config)
    except Exception as error:  # a part that somebody has added cannot be copied or pickled
        logger.warning("nothing is compiled in the background: %s", reason(error))
        return None


def meanwhile(config: CompileConfig) -> CompileConfig:
    """The same without what would be compiled."""
    eager = {name: dataclasses.replace(getattr(config, name), execution="eager") for name in _compiled(config)}
    return config.replace(**eager)


def _compiled(config: CompileConfig) -> list[str]:
    names = [name for name in COMPONENTS if name not in _NOTHING_TO_COMPILE]
    return [name for name in names if getattr(config, name).execution in ("auto", "inductor")]


if __name__ == "__main__":
    main(sys.argv[1])
