"""The kind of machine that compiled code is valid for."""

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
from ..errors import CompilationError
from ..utils.device import cpu_name

OPERATORS = Path(__file__).parents[1] / "execution"  # every file that registers an operator lies in it
_TITLES = {"cpu": "CPU", "features": "CPU features", "compiler": "C++ compiler", "installed": "installed in"}
_COMPILER_SECONDS = 60


@dataclass(frozen=True)
class Machine:
    """A kind of machine: compiled code can be used on every machine of one kind.

    GPUs are not part of it, since torch's own keys name the device.

    Attributes:
        torch: version and revision of torch.
        python: the tag of Python's byte code.
        architecture: the processor's architecture.
        cpu: the processor's name.
        features: instructions that the processor offers; ``-march=native`` uses all of them.
        compiler: path and version of the C++ compiler.
        installed: the folders of torch and of Python's headers, which torch's keys for C++ contain.
        operators: a digest of the files that define this library's operators; torch's keys contain their names only.
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
        """Makes a machine from the result of ``dataclasses.asdict``.

        Raises:
            ValueError: for any other value.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(plain, dict) or set(plain) != names or any(not isinstance(v, str) for v in plain.values()):
            raise ValueError("the kind of machine is not described")
        return cls(**plain)

    @functools.cached_property
    def name(self) -> str:
        """The name of the machine's folder: versions for the reader and a digest of all attributes."""
        digest = hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()
        release = self.torch.split("+")[0].split(" ")[0]
        return f"torch-{release}-{self.python}-{digest[:12]}"

    def differences(self, here: Machine) -> str:
        """Returns the differences to another machine, ``here``, in words; an empty text for one of the same kind."""
        found = []
        for field in dataclasses.fields(self):
            value, expected = getattr(self, field.name), getattr(here, field.name)
            if value == expected:
                continue
            if field.name == "features":  # hundreds: only those that differ
                more, fewer = (set(a.split()) - set(b.split()) for a, b in ((value, expected), (expected, value)))
                value, expected = (" ".join(sorted(names)) or "none" for names in (more, fewer))
            found.append(f"{_TITLES.get(field.name, field.name)} {value} instead of {expected}")
        return "; ".join(found)


@functools.cache
def this_machine() -> Machine:
    """Returns the kind of machine that this process runs on; compiles nothing and uses no GPU."""
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
        operators=digest_of_operators(OPERATORS),
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
            timeout=_COMPILER_SECONDS,
            env={**os.environ, "LC_ALL": "C"},
        )
    except (OSError, subprocess.SubprocessError):
        return path
    return f"{path} {(done.stdout or done.stderr).partition(chr(10))[0].strip()}".strip()


def digest_of_operators(folder: Path) -> str:
    """Returns a digest of the files that define this library's operators.

    Raises:
        CompilationError: when the folder holds no Python file; with a constant digest, code compiled for other versions
            of the operators would be loaded.
    """
    sources = sorted(folder.rglob("*.py"))
    if not sources:
        raise CompilationError(f"{folder} holds no file that defines an operator")
    digest = hashlib.sha256()
    for path in sources:
        digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]
