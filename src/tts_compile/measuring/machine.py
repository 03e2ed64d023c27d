"""The machine and the versions that a figure belongs to."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

import psutil
import torch

from .._version import __version__
from ..utils.device import cpu_name

PACKAGES = ("torch", "transformers", "chatterbox-tts", "tts-compile")


def versions() -> dict[str, str | None]:
    """Returns the versions of Python and of the packages; None for a package that is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    if found["tts-compile"] is None:  # run from a source tree
        found["tts-compile"] = __version__
    return found


def describe() -> dict[str, Any]:
    """Returns plain values: platform, CPU model, cores, threads, memory in GiB, GPUs, versions."""
    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "versions": versions(),
    }


def cpu_model() -> str:
    """Returns the CPU's name and the vector instructions that torch uses on it."""
    name = platform.processor() or platform.machine()
    for line in cpu_name().splitlines():
        if line.startswith("model name"):
            name = line.partition(":")[2].strip()
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"
