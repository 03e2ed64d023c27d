"""What this machine offers, and what would run on it and why."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from . import _compat
from .bench import machine
from .config import COMPONENTS, CompileConfig, switched_off_by_env
from .report import format_table

_ACCELERATED = ("t3",)  # the components that compile_model can replace


@dataclass(frozen=True)
class Plan:
    """What one component will run as, and the reason."""

    runs: str
    why: str


@dataclass(frozen=True)
class Diagnosis:
    """Everything found; :meth:`to_dict` is JSON-able, ``str()`` is a table.

    Attributes:
        compiler: the C++ compiler that inductor would use, or None.
        cache_dir: where compiled code is kept.
        problems: what keeps the library from working, in sentences.
    """

    machine: dict[str, Any]
    devices: tuple[str, ...]
    compiler: str | None
    cache_dir: str
    components: dict[str, Plan]
    problems: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def __str__(self) -> str:
        about = self.machine
        rows: list[tuple[str, ...]] = [("what", "found")]
        rows += [(name, version or "not installed") for name, version in about["versions"].items()]
        rows += [
            ("platform", about["platform"]),
            ("CPU", about["cpu"]),
            ("cores, torch threads", f"{about['cores']}, {about['torch_threads']}"),
            ("memory", "unknown" if about["memory_gib"] is None else f"{about['memory_gib']} GiB"),
            ("devices", ", ".join(self.devices)),
            ("C++ compiler", self.compiler or "none that works"),
            ("compile cache", self.cache_dir),
        ]
        plans: list[tuple[str, ...]] = [
            ("component", "will run", "why"),
            *((k, v.runs, v.why) for k, v in self.components.items()),
        ]
        return "\n".join([format_table(rows), "", format_table(plans), *(f"\nproblem: {p}" for p in self.problems)])


def examine() -> Diagnosis:
    """Look around; loads no model and compiles nothing.

    Raises:
        ConfigError: when the environment names a configuration that is wrong.
    """
    about = machine.describe()
    config = CompileConfig.from_env()
    compiler = _compat.cpp_compiler()
    problems = []
    if about["versions"]["chatterbox-tts"] is None:
        problems.append("chatterbox-tts is not installed: pip install 'tts-compile[chatterbox]'")
    return Diagnosis(
        machine=about,
        devices=("cpu", *(f"cuda:{i} ({name})" for i, name in enumerate(about["gpus"]))),
        compiler=compiler,
        cache_dir=config.cache_dir or _compat.inductor_cache_dir(),
        components={name: _plan(name, config, compiler) for name in COMPONENTS},
        problems=tuple(problems),
    )


def _plan(name: str, config: CompileConfig, compiler: str | None) -> Plan:
    policy = getattr(config, name)
    if switched_off_by_env():
        return Plan("stock", "TTS_COMPILE switches the library off")
    if policy.execution == "stock":
        return Plan("stock", "the configuration asks for it")
    if name not in _ACCELERATED:
        return Plan("stock", "not accelerated in this version")
    if policy.execution == "eager":
        return Plan("eager", "the configuration asks for it")
    if compiler is None and not torch.cuda.is_available():
        return Plan("eager", "inductor finds no C++ compiler that works; install g++ or clang++")
    asked = "the default" if policy.execution == "auto" else f"the configuration asks for {policy.execution}"
    return Plan("inductor", f"{asked}; on a CPU built by {compiler}" if compiler else f"{asked}; on the GPU only")
