"""Native libraries: their folder, the checks before loading, and the changes that need a new build."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

import tts_compile as tc
from tts_compile import _compat, cache
from tts_compile.execution.native import build

NAME = "convolution"  # the quickest to build


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the sources, and a compiler that writes a line instead of code and counts its calls."""
    copied = tmp_path / "sources"
    shutil.copytree(build.SOURCES, copied)
    monkeypatch.setattr(build, "SOURCES", copied)
    compiler = script(tmp_path / "c++", f'echo call >> {tmp_path}/calls\nfor o; do :; done; echo code > "$o"')
    monkeypatch.setattr(_compat, "cpp_compiler", lambda: compiler)
    return copied


def ours(cache_dir: Path) -> Path:
    return cache.folder(str(cache_dir)) / cache.OWN_FOLDER


def calls(folder: Path) -> int:
    return len((folder / "calls").read_text().splitlines())


def test_folder_that_others_can_write_to_is_refused(tmp_path: Path) -> None:
    folder = ours(tmp_path)
    folder.mkdir(parents=True)
    os.chmod(folder, 0o777)
    with pytest.raises(tc.CompilationError, match="written by other users"):
        build.load_library(NAME, str(tmp_path))
    assert list(folder.iterdir()) == []


def test_library_that_others_can_write_to_is_refused(tmp_path: Path, sources: Path) -> None:
    build.built(NAME, ours(tmp_path)).chmod(0o666)
    with pytest.raises(tc.CompilationError, match="written by other users"):
        build.built(NAME, ours(tmp_path))


def test_folder_is_made_for_its_owner_alone(tmp_path: Path, sources: Path) -> None:
    path = build.built(NAME, ours(tmp_path))
    assert ours(tmp_path).stat().st_mode & 0o777 == 0o700
    assert path.stat().st_mode & 0o022 == 0


@pytest.mark.parametrize("kept", [0, -1])
def test_library_cut_short_is_built_again(tmp_path: Path, kept: int) -> None:
    path = build.built(NAME, ours(tmp_path))
    whole = path.stat().st_size
    path.write_bytes(path.read_bytes()[:kept])
    build.load_library(NAME, str(tmp_path))
    assert path.stat().st_size == whole


def test_library_that_stays_unreadable_is_an_error(tmp_path: Path, sources: Path) -> None:
    with pytest.raises(tc.CompilationError, match=f"native {NAME} cannot be .*loaded"):
        build.load_library(NAME, str(tmp_path))
    assert calls(tmp_path) == 2


def test_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(tc.CompilationError, match="cannot be kept"):
        build.load_library(NAME, str(tmp_path / "file"))


def test_failing_compiler_is_an_error_with_its_first_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = script(tmp_path / "c++", "echo 'no such luck' >&2\nexit 1")
    monkeypatch.setattr(_compat, "cpp_compiler", lambda: compiler)
    with pytest.raises(tc.CompilationError, match=r"failed: no such luck$"):
        build.load_library(NAME, str(tmp_path))
    assert list(ours(tmp_path).iterdir()) == []


def test_compiler_that_hangs_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = script(tmp_path / "c++", "exec sleep 60")
    monkeypatch.setattr(_compat, "cpp_compiler", lambda: compiler)
    monkeypatch.setattr(build, "BUILD_SECONDS", 0.1)
    with pytest.raises(tc.CompilationError, match="timed out"):
        build.load_library(NAME, str(tmp_path))
    assert list(ours(tmp_path).iterdir()) == []


def test_no_compiler_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_compat, "cpp_compiler", lambda: None)
    with pytest.raises(tc.CompilationError, match=r"no C\+\+ compiler found"):
        build.load_library(NAME, str(tmp_path))


def test_built_once_for_the_same_sources(tmp_path: Path, sources: Path) -> None:
    first = build.built(NAME, ours(tmp_path))
    assert first == build.built(NAME, ours(tmp_path))
    assert list(ours(tmp_path).iterdir()) == [first]
    assert calls(tmp_path) == 1


@pytest.mark.parametrize("changed", [f"{NAME}.cpp", "simd.h", "gemm_tile.h"])
def test_changed_source_is_another_library(changed: str, tmp_path: Path, sources: Path) -> None:
    first = build.built(NAME, ours(tmp_path))
    with (sources / changed).open("a") as file:
        file.write("// changed\n")
    second = build.built(NAME, ours(tmp_path))
    assert second != first
    assert second.name.startswith(NAME)
    assert first.exists()  # another process may still use it


def test_other_flags_compiler_torch_or_processor_are_another_library(
    tmp_path: Path, sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {build.built(NAME, ours(tmp_path))}
    compiler = shutil.copy(tmp_path / "c++", tmp_path / "other-c++")
    for owner, name, value in (
        (build, "FLAGS", (*build.FLAGS, "-g")),
        (torch, "__version__", "0.0"),
        (build, "cpu_name", lambda: "another"),
        (_compat, "cpp_compiler", lambda: str(compiler)),
    ):
        monkeypatch.setattr(owner, name, value)
        found.add(build.built(NAME, ours(tmp_path)))
    assert len(found) == 5


def test_operator_is_registered_only_once() -> None:
    for number in (1, 2):
        build.register("registered_twice(Tensor x) -> Tensor", lambda x, n=number: x + n, torch.empty_like)
    assert float(torch.ops.tts_compile.registered_twice(torch.zeros(()))) == 1
