"""The memory of the machine and of its devices, and the name of its processor."""

from __future__ import annotations

import gc
import platform
from pathlib import Path

import psutil
import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether memory ran out, on a device or for tensors on the CPU, for which torch has no error type."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)


def release_memory() -> None:
    """Returns the memory that torch keeps for later use to the devices."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def memory_summary() -> str:
    """Describes in a sentence the memory that this process holds and the memory that is free."""
    gib = 2**30
    machine = psutil.virtual_memory()
    parts = [
        f"the process holds {psutil.Process().memory_info().rss / gib:.2f} GiB, "
        f"{machine.available / gib:.2f} of {machine.total / gib:.2f} GiB are free"
    ]
    if torch.cuda.is_initialized():
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            reserved = torch.cuda.memory_reserved(index)
            parts.append(
                f"cuda:{index}: torch holds {reserved / gib:.2f} GiB, "
                f"{free / gib:.2f} of {total / gib:.2f} GiB are free"
            )
    return "; ".join(parts)


def free_memory(device: torch.device) -> int:
    """Returns the bytes that can be allocated on a device, with those that torch keeps for later use."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + unused)
    return int(psutil.virtual_memory().available)


def held_memory(device: torch.device) -> int:
    """Returns the bytes that this process holds on a GPU, as torch counts them, or in the machine's memory."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return int(psutil.Process().memory_info().rss)


def cpu_name() -> str:
    """Returns the processor's model name and features from the system; empty where it gives none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    found = {line.split(":")[0].strip(): line for line in lines if line.startswith(wanted)}
    return "\n".join(found.values())
