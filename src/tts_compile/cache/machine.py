"""What compiled code is valid for."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .. import _compat
from ..utils.device import cpu_name

_TITLES = {"cpu": "CPU", "features": "CPU features", "compiler": "C++ compiler", "installed": "installed in"}
_SECONDS = 60


@dataclass(frozen=True)
class Machine:
    """A kind of machine: code that was compiled on one serves on all of the same kind.

    GPUs are no part of it, since torch's own keys name the device.

    Attributes:
        torch: its version and revision.
        python: the tag of its byte code.
        architecture: of the processor.
        cpu: its name.
        features: instructions that it offers; ``-march=native`` means all of them.
        compiler: the C++ compiler's path and version.
        installed: the folders of torch and of Python's headers, which torch's keys for C++ contain.
        operators: a digest of the room that defines this library's operators. Torch knows them by their names only.
    """

    torch: str
    python: str
    architecture: str
    cpu: str
    features: str
    compiler: str
    installed: str
    operators: str

    @classmethod
    def from_dict(cls, plain: Any) -> Machine:
        """What ``dataclasses.asdict`` gives of one.

        Raises:
            ValueError: for anything else.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(plain, dict) or set(plain) != names or any(not isinstance(v, str) for v in plain.values()):
            raise ValueError("it does not say for which machine it is")
        return cls(**plain)

    @functools.cached_property
    def name(self) -> str:
        """For a folder: what a reader wants to know first, and a digest of everything."""
        digest = hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()
        release = self.torch.split("+")[0].split(" ")[0]
        return f"torch-{release}-{self.python}-{digest[:12]}"

    def differences(self, here: Machine) -> str:
        """In what another machine differs from the one ``here``, in words; empty for one of the same kind."""
        found = []
        for field in dataclasses.fields(self):
            there, ours = getattr(self, field.name), getattr(here, field.name)
            if there == ours:
                continue
            if field.name == "features":  # hundreds
                more, fewer = (set(a.split()) - set(b.split()) for a, b in ((there, ours), (ours, there)))
                there, ours = (" ".join(sorted(names)) or "no others" for names in (more, fewer))
            found.append(f"{_TITLES.get(field.name, field.name)} {there} there, {ours} here")
        return "; ".join(found)


@functools.cache
def this_machine() -> Machine:
    """The one that this process runs on; neither compiles anything nor touches a GPU."""
    cpu = cpu_name().splitlines()
    features = [line for line in cpu if line.lower().startswith(("flags", "features"))]
    revision = getattr(torch.version, "git_version", None) or "unknown"
    return Machine(
        torch=f"{torch.__version__} ({revision[:12]})",
        python=str(sys.implementation.cache_tag),
        architecture=platform.machine(),
        cpu=" ".join(line.partition(":")[2].strip() or line for line in cpu if line not in features),
        features=" ".join(sorted({name for line in features for name in line.partition(":")[2].split()})),
        compiler=_compiler(),
        installed=f"{Path(torch.__file__).parent} {sysconfig.get_path('include')}",
        operators=_operators(),
    )


def _compiler() -> str:
    compiler = _compat.cpp_compiler()
    if compiler is None:
        return "none"
    path = shutil.which(compiler) or compiler
    try:
        done = subprocess.run(
            [path, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            env={**os.environ, "LC_ALL": "C"},
        )
    except (OSError, subprocess.SubprocessError):
        return path
    return f"{path} {(done.stdout or done.stderr).partition(chr(10))[0].strip()}".strip()


def _operators() -> str:
    digest = hashlib.sha256()
    room = Path(__file__).parents[1] / "execution"
    for path in sorted(room.rglob("*.py")):
        digest.update(path.relative_to(room).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]
