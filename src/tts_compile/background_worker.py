"""The program of a process that compiles for another one; :mod:`tts_compile.background` starts it."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import torch
from torch.nn.utils import parametrizations

from .api import compile_model


def main(path: str) -> None:
    """Compiles the model that the file at ``path`` describes, so that its code lies in the cache folder.

    Args:
        path: a file that :class:`tts_compile.background.BackgroundCompilation` has written.
    """
    payload = pickle.loads(Path(path).read_bytes())  # written by the parent process into a folder of its own
    torch.set_num_threads(payload["threads"])
    tts = payload["class"].__new__(payload["class"])
    for name, (part, norms) in payload["parts"].items():
        # The memory of zeros is provided by the system only where it is written to.
        part._apply(lambda tensor: torch.zeros_like(tensor, device="cpu") if tensor.is_meta else tensor)
        for path, weight, dim in norms:
            parametrizations.weight_norm(part.get_submodule(path), weight, dim)
        setattr(tts, name, part.eval())
    compile_model(tts, payload["config"]).warmup()


if __name__ == "__main__":
    main(sys.argv[1])
