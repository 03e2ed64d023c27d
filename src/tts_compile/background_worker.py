"""The program of a process that compiles for another one; :mod:`tts_compile.background` starts it."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import torch
from torch import nn

from .api import compile_model


def main(path: str) -> None:
    """Compiles the model that the file at ``path`` describes, so that its code lies in the cache folder.

    Args:
        path: a file that :class:`tts_compile.background.BackgroundCompilation` has written.
    """
    payload = pickle.loads(Path(path).read_bytes())  # written by the parent process into a folder of its own
    torch.set_num_threads(payload["threads"])
    tts = payload["class"].__new__(payload["class"])
    for name, part in payload["parts"].items():
        setattr(tts, name, _with_zeros(part))
    compile_model(tts, payload["config"]).warmup()


def _with_zeros(module: nn.Module) -> nn.Module:
    """Gives parameters without values zeros, whose memory the system provides only where it is written to."""

    def values(tensor: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(tensor, device="cpu") if tensor.is_meta else tensor

    module._apply(values)
    return module


if __name__ == "__main__":
    main(sys.argv[1])
