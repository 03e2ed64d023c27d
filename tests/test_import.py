"""Importing the library is cheap, and its modules import each other in one direction only."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

import tts_compile as tc

PACKAGE = "tts_compile"
ROOT = Path(tc.__file__).parent
SCRIPT = """
import json, sys, time
import torch
before = time.process_time()
import tts_compile
seconds = time.process_time() - before
print(json.dumps({"seconds": seconds, "modules": sorted(sys.modules)}))
"""

# Rooms that nothing outside the list may import, and the rooms that may; "" is the package itself.
PRIVATE = {
    "cli": {"cli"},
    "bench": {"bench", "cli"},
    "testing": {"testing", "bench", "cli", ""},  # tts_compile.testing is imported on first use
    "tuning": {"tuning", "bench", "cli", ""},  # and so is tts_compile.autotune
}
# Rooms that may import nothing of the package beside these.
ALLOWED = {
    "errors": set[str](),
    "_version": set[str](),
    "_compat": {"errors"},
    "utils": {"utils", "errors", "_compat"},
    "splitting": {"errors", "utils"},
    "bucketing": {"errors", "utils", "splitting"},
    "fallback": {"errors", "utils"},
    "config": {"errors", "utils", "bucketing", "fallback"},
    "report": {"errors", "utils", "fallback"},
    "timing": {"timing", "errors", "utils"},
}
# Import cycles that stay, with the reason: two modules in alphabetical order.
CYCLES: dict[tuple[str, str], str] = {}


def modules_of(root: Path, package: str) -> dict[str, Path]:
    """Finds the modules of a package by their full names."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join((package, *(part for part in parts if part != "__init__")))] = path
    return found


def imported_by(name: str, path: Path, modules: Iterable[str]) -> Iterator[str]:
    """Yields the modules of the package that a file imports anywhere, for types alone and inside functions too."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) + 1 - node.level]
                base = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:
                if (inner := f"{base}.{alias.name}") in modules:
                    yield inner
                elif base in modules:
                    yield base


def graph_of(root: Path = ROOT, package: str = PACKAGE) -> dict[str, set[str]]:
    """Returns the modules that each module of a package imports."""
    modules = modules_of(root, package)
    return {name: {*imported_by(name, path, modules)} - {name} for name, path in modules.items()}


def cycles_in(graph: dict[str, set[str]]) -> list[list[str]]:
    """Finds the groups of modules of which each one imports, directly or not, every other one."""
    reached = {name: set(imports) for name, imports in graph.items()}
    for via in graph:
        for name in graph:
            if via in reached[name]:
                reached[name] |= reached[via]
    groups = {name: {other for other in reached[name] if name in reached[other]} for name in graph}
    return sorted({tuple(sorted(group)) for group in groups.values() if group})


def room(name: str) -> str:
    """Returns the first part of a module's name below the package: "" for the package itself."""
    return name.split(".")[1] if "." in name else ""


def arrows(graph: dict[str, set[str]]) -> Iterator[tuple[str, str]]:
    for name, imports in graph.items():
        yield from ((name, other) for other in sorted(imports))


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    return graph_of()


def test_no_module_imports_itself_through_others(graph: dict[str, set[str]]) -> None:
    without = {
        name: {other for other in imports if (*sorted((name, other)),) not in CYCLES} for name, imports in graph.items()
    }
    assert cycles_in(without) == []


@pytest.mark.parametrize("name", ALLOWED)
def test_lower_rooms_import_lower_rooms_alone(graph: dict[str, set[str]], name: str) -> None:
    assert name in {room(module) for module in graph}
    found = [f"{a} imports {b}" for a, b in arrows(graph) if room(a) == name and room(b) not in ALLOWED[name]]
    assert found == []


@pytest.mark.parametrize("name", PRIVATE)
def test_nothing_below_imports_the_tools(graph: dict[str, set[str]], name: str) -> None:
    assert name in {room(module) for module in graph}
    found = [f"{a} imports {b}" for a, b in arrows(graph) if room(b) == name and room(a) not in PRIVATE[name]]
    assert found == []


def test_no_family_imports_a_component(graph: dict[str, set[str]]) -> None:
    assert [f"{a} imports {b}" for a, b in arrows(graph) if (room(a), room(b)) == ("families", "components")] == []


def test_the_checks_find_what_they_look_for(tmp_path: Path) -> None:
    files = {
        "__init__.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .bench import run\n",
        "errors.py": "",
        "config.py": "def late():\n    from . import api, errors\n",
        "api.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p.config import Config\n",
        "bench/__init__.py": "from ..errors import Error\nfrom .run import run\n",
        "bench/run.py": "import p.api\nfrom . import run as itself\nfrom .. import bench\n",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    found = graph_of(tmp_path, "p")
    assert found == {
        "p": {"p.bench.run"},
        "p.errors": set(),
        "p.config": {"p.api", "p.errors"},
        "p.api": {"p.config"},
        "p.bench": {"p.errors", "p.bench.run"},
        "p.bench.run": {"p.api", "p.bench"},
    }
    assert cycles_in(found) == [("p.api", "p.config"), ("p.bench", "p.bench.run")]


def imported() -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.fixture(scope="module")
def fresh() -> dict[str, Any]:
    """The library imported by a process of its own."""
    return imported()


def test_it_is_cheap_and_loads_no_model_code(fresh: dict[str, Any]) -> None:
    modules = fresh["modules"]
    assert not {"chatterbox", "transformers", "librosa", "diffusers"} & {name.split(".")[0] for name in modules}
    assert "torch._inductor.config" not in modules
    runs = [fresh]
    while min(run["seconds"] for run in runs) > 0.3 and len(runs) < 3:  # the best of three: others share the machine
        runs.append(imported())
    assert min(run["seconds"] for run in runs) <= 0.3


def test_it_loads_no_tools(fresh: dict[str, Any]) -> None:
    loaded = {name for name in fresh["modules"] if name.startswith(f"{PACKAGE}.") and room(name) in PRIVATE}
    assert loaded == set()


def test_public_names_exist() -> None:
    assert [name for name in tc.__all__ if not hasattr(tc, name)] == []
    assert sorted(tc.__all__) == tc.__all__
    assert {*tc.__all__} <= {*dir(tc)}
    assert tc.autotune is tc.tuning.autotune
    assert tc.testing.write_checkpoint
    assert tc.families()
    with pytest.raises(AttributeError, match="no attribute 'autotuned'"):
        tc.autotuned  # noqa: B018
