"""A look at this machine: versions, devices, the compile cache, and the plan for each component."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

import torch

from .. import _compat, cache
from ..cache import CacheState
from ..components.t3.component import CPU_DRAFT_TOKENS
from ..config import COMPONENTS, CompileConfig, switched_off_by_env
from ..errors import UnsafeFileError
from ..measuring import machine
from ..measuring.proof import COMPILED
from ..utils import files
from ..utils.tables import format_table

_NATIVE = {"t3": "decoder", "flow": "transformer blocks and convolutions", "vocoder": "convolutions"}


@dataclass(frozen=True)
class Plan:
    """The execution of one component, and the reason for it."""

    runs: str
    why: str


@dataclass(frozen=True)
class Diagnosis:
    """The findings; :meth:`to_dict` is JSON-able, ``str()`` is a table.

    Attributes:
        compiler: the C++ compiler that inductor would use, or None.
        cache_dir: folder of compiled code, with a folder in it for each kind of machine.
        cache: contents of that folder.
        components: the plan for each component.
        problems: sentences about what the library cannot work with.
    """

    machine: dict[str, Any]
    devices: tuple[str, ...]
    compiler: str | None
    cache_dir: str
    cache: CacheState
    components: dict[str, Plan]
    problems: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values."""
        return asdict(self)

    def __str__(self) -> str:
        about = self.machine
        rows: list[tuple[str, ...]] = [("what", "found")]
        rows += [(name, version or "not installed") for name, version in about["versions"].items()]
        rows += [
            ("platform", about["platform"]),
            ("CPU", about["cpu"]),
            ("cores, torch threads", f"{about['cores']}, {about['torch_threads']}"),
            ("memory", f"{about['memory_gib']} GiB"),
            ("devices", ", ".join(self.devices)),
            ("C++ compiler", self.compiler or "none that works"),
            *self.cache.rows(),
        ]
        plans: list[tuple[str, ...]] = [
            ("component", "will run", "why"),
            *((k, v.runs, v.why) for k, v in self.components.items()),
        ]
        return "\n".join([format_table(rows), "", format_table(plans), *(f"\nproblem: {p}" for p in self.problems)])


def examine() -> Diagnosis:
    """Looks at the machine and the environment; loads no model and compiles nothing.

    Raises:
        ConfigError: when the environment names a configuration that is wrong.
    """
    about = machine.describe()
    config = CompileConfig.from_env()
    compiler = _compat.cpp_compiler()
    problems = []
    cache_dir, own = cache.root(config.cache_dir), cache.folder(config.cache_dir)
    nearest = next(folder for folder in (own, *own.parents) if folder.exists())
    if not (nearest.is_dir() and os.access(nearest, os.W_OK)):
        problems.append(f"compiled code cannot be kept in {cache_dir}: {nearest} is not a writable folder")
    for folder in (cache_dir, own):
        try:
            if folder.exists():  # otherwise it will be made with access for its owner alone
                files.refuse_unsafe(folder)
        except UnsafeFileError as error:
            problems.append(str(error))
    if about["versions"]["chatterbox-tts"] is None:
        problems.append("chatterbox-tts is not installed: pip install 'tts-compile[chatterbox]'")
    return Diagnosis(
        machine=about,
        devices=("cpu", *(f"cuda:{i} ({name})" for i, name in enumerate(about["gpus"]))),
        compiler=compiler,
        cache_dir=str(cache_dir),
        cache=cache.state(config.cache_dir),
        components={name: _plan(name, config, compiler) for name in COMPONENTS},
        problems=tuple(problems),
    )


def _plan(name: str, config: CompileConfig, compiler: str | None) -> Plan:
    policy = getattr(config, name)
    if switched_off_by_env():
        return Plan("stock", "TTS_COMPILE switches the library off")
    if policy.execution in ("stock", "eager"):
        return Plan(policy.execution, "the configuration asks for it")
    if name not in COMPILED:
        return Plan("eager", "without librosa's first-use imports; there is nothing in it to compile")
    if compiler is None and not torch.cuda.is_available():
        return Plan("eager", "inductor finds no C++ compiler that works; install g++ or clang++")
    asked = "the default" if policy.execution == "auto" else f"the configuration asks for {policy.execution}"
    if torch.cuda.is_available() and name in ("t3", "flow") and policy.execution != "inductor":
        on_cpu = "inductor" if compiler else "eager"
        return Plan("cuda_graph", f"{asked}; a model on the GPU: captured graphs; on the CPU: {on_cpu}")
    if not compiler:
        return Plan("inductor", f"{asked}; on the GPU only")
    native = f"fp32 on a CPU: native {_NATIVE[name]} built by {compiler}"
    if name == "t3":
        native += f", {CPU_DRAFT_TOKENS if policy.draft_tokens is None else policy.draft_tokens} draft tokens"
    return Plan("inductor", f"{asked}; {native}")
