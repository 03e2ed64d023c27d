"""Compiled code on disk: its folder, the machines it is valid for, and its use by other processes."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import platformdirs
import pytest
import torch
from torch._functorch import config as autograd
from torch._higher_order_ops.auto_functionalize import auto_functionalized_v2
from torch._inductor import config as inductor
from torch._inductor.runtime import cache_dir_utils

import tts_compile as tc
from tts_compile import _compat, cache
from tts_compile.cache.contents import FileCount
from tts_compile.cache.folder import MACHINE
from tts_compile.cache.machine import OPERATORS, Machine, digest_of_operators, this_machine
from tts_compile.errors import UnsafeFileError
from tts_compile.utils import files

INDUCTOR, TRITON = "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"
CARRIED = {
    "ab/cabc.cpp": b"source",
    "ab/cabc.so": b"library" * 1000,
    "aotautograd/akey/entry": b"traced",
    "fxgraph/ab/fkey/hash": b"graph",
    "tts_compile/decoder-1.so": b"native",
}
LEFT = {
    "tts_compile/tuned-1.json": b"{}",
    "locks/cabc.lock": b"",
    "ab/.1.2.tmp": b"half",
    "ab/.loading-x/file": b"half",
}
SORTS = {"generated": 2, "autograd": 1, "graphs": 1, "native": 1, "choices": 1}


def fill(cache_dir: Path, contents: dict[str, bytes]) -> Path:
    folder = cache.make_folder(str(cache_dir))
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


# Where it is kept


def test_who_says_where_it_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(INDUCTOR)
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda *args, **kwargs: tmp_path / "user's")
    assert cache.root() == tmp_path / "user's"
    monkeypatch.setenv(INDUCTOR, str(tmp_path / "torch's"))
    assert cache.root() == tmp_path / "torch's"
    monkeypatch.setenv("TTS_COMPILE_CACHE_DIR", str(tmp_path / "ours"))
    assert cache.root() == tmp_path / "ours"
    assert cache.root(str(tmp_path / "configured")) == tmp_path / "configured"
    assert cache.root("relative") == Path.cwd() / "relative"


def test_what_torch_has_chosen_nobody_has_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda *args, **kwargs: tmp_path)
    monkeypatch.delenv(INDUCTOR)
    cache_dir_utils.cache_dir()
    assert os.environ[INDUCTOR]
    assert cache.root() == tmp_path
    monkeypatch.setenv(INDUCTOR, "")
    assert cache.root() == tmp_path

    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 4321")

    monkeypatch.setattr(cache_dir_utils, "default_cache_dir", nameless)
    monkeypatch.setenv(INDUCTOR, str(tmp_path / "torch's"))
    assert cache.root() == tmp_path / "torch's"


def test_torch_is_told_for_the_duration_of_a_block(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    outside, root = os.environ[INDUCTOR], cache.root()
    monkeypatch.delenv(TRITON, raising=False)
    with cache.using_cache(str(tmp_path)):
        assert os.environ[INDUCTOR] == str(cache.folder(str(tmp_path)))
        assert cache.root() == root  # and not a folder in the folder
        with cache.using_cache():
            assert os.environ[INDUCTOR] == str(cache.folder())
            assert cache.root() == root
        os.environ[TRITON] = "where torch has put it"
        assert os.environ[INDUCTOR] == str(cache.folder(str(tmp_path)))
        assert cache.root() == root
    assert os.environ[INDUCTOR] == outside
    assert TRITON not in os.environ
    with contextlib.suppress(KeyboardInterrupt), cache.using_cache(str(tmp_path)):
        raise KeyboardInterrupt
    assert (os.environ[INDUCTOR], cache.root()) == (outside, root)
    monkeypatch.setenv(INDUCTOR, str(tmp_path))
    assert cache.root() == tmp_path


def test_torch_keeps_all_graphs_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    def kept() -> tuple[bool, bool]:
        return autograd.enable_autograd_cache, auto_functionalized_v2.cacheable()

    before = kept()
    with cache.using_cache():
        assert kept() == (True, True)
        with cache.using_cache():
            assert kept() == (True, True)
        assert kept() == (True, True)
    assert kept() == before
    monkeypatch.setenv("TORCHINDUCTOR_AUTOGRAD_CACHE", "0")
    with cache.using_cache():
        assert kept() == (before[0], True)  # as the user has it


def test_a_folder_for_this_kind_of_machine(tmp_path: Path) -> None:
    folder = cache.make_folder(str(tmp_path / "a"))
    assert folder == cache.folder(str(tmp_path / "a"))
    assert re.fullmatch(r"torch-\d+\.\d+\.\d+\w*-cpython-3\d+-[0-9a-f]{12}", folder.name)
    assert {path.stat().st_mode & 0o777 for path in (folder, folder.parent)} == {0o700}
    assert Machine.from_dict(json.loads((folder / MACHINE).read_text())) == this_machine()


def test_a_folder_that_others_can_write_to(tmp_path: Path) -> None:
    folder = fill(tmp_path, CARRIED)
    folder.chmod(0o777)
    for refused in (cache.make_folder, lambda cache_dir: tc.save_compile_cache(tmp_path / "x.zip", cache_dir)):
        with pytest.raises(UnsafeFileError, match="other users"):
            refused(str(tmp_path))
    assert not (tmp_path / "x.zip").exists()


def test_what_is_for_readers_only_may_be_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "replaced", full)
    assert cache.make_folder(str(tmp_path)).is_dir()
    assert "No space left" in caplog.text


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Machine)])
def test_machines_differ_by_everything(field: str) -> None:
    other = dataclasses.replace(this_machine(), **{field: "another"})
    assert other.name != this_machine().name
    assert "another instead of " in other.differences(this_machine())
    assert this_machine().differences(this_machine()) == ""


def test_only_the_features_that_differ_are_named() -> None:
    here = dataclasses.replace(this_machine(), features="avx2 fma sse")
    there = dataclasses.replace(here, features="avx2 avx512f fma", torch="2.5.0 (a1)")
    assert there.differences(dataclasses.replace(here, torch="2.6.0 (b2)")) == (
        "torch 2.5.0 (a1) instead of 2.6.0 (b2); CPU features avx512f instead of sse"
    )
    assert there.differences(dataclasses.replace(there, features="fma")) == (
        "CPU features avx2 avx512f instead of none"
    )


def test_what_a_machine_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    look = this_machine.__wrapped__
    assert str(torch.__version__) in look().torch
    assert str(Path(torch.__file__).parent) in look().installed
    assert re.search(r"\d+\.\d+", look().compiler)
    monkeypatch.setattr(
        "tts_compile.cache.machine.cpu_name", lambda: "CPU part\t: 0xd0c\nFeatures\t: fp asimd aes\nmodel name\t: Core"
    )
    assert (look().cpu, look().features) == ("0xd0c Core", "aes asimd fp")
    monkeypatch.setattr("tts_compile.cache.machine.cpu_name", lambda: "Some Processor Family 6, x")
    assert (look().cpu, look().features) == ("Some Processor Family 6, x", "")
    monkeypatch.setattr(_compat, "cpp_compiler", lambda: str(tmp_path))
    assert look().compiler == str(tmp_path)
    monkeypatch.setattr(_compat, "cpp_compiler", lambda: None)
    assert look().compiler == "none"


REGISTERS = re.compile(r'\bbuild\.register\(\s*"(\w+)\(')


def test_machines_differ_by_every_file_that_defines_an_operator(tmp_path: Path) -> None:
    package = Path(tc.__file__).parent
    texts = {path.relative_to(package): path.read_text() for path in package.rglob("*.py")}
    operators = {path: found for path, text in texts.items() if (found := REGISTERS.findall(text))}
    assert {name for found in operators.values() for name in found} >= {
        *("convolution", "llama_decoder", "transformer_block")
    }
    definers = [path for path, text in texts.items() if path in operators or "torch.library." in text]
    copied = shutil.copytree(package, tmp_path / "package")
    folder = copied / OPERATORS.relative_to(package)
    digests = {digest_of_operators(OPERATORS)}
    assert digests == {digest_of_operators(folder), this_machine().operators}
    for count, path in enumerate(definers, 2):
        (copied / path).write_text(texts[path] + "# changed\n")
        digests.add(digest_of_operators(folder))
        assert len(digests) == count, f"a change of {path} does not change the digest"


def test_without_the_operators_files_nothing_is_taken_for_valid(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(tc.CompilationError, match="no file that defines an operator"):
            digest_of_operators(folder)


def test_a_compiler_that_cannot_be_run_is_none() -> None:
    for name in ("", "no-such-compiler"):
        with inductor.patch({"cpp.cxx": (name,)}):
            assert _compat.cpp_compiler() is None


# What there is


def test_state(tmp_path: Path) -> None:
    empty = cache.state(str(tmp_path / "a"))
    assert not (tmp_path / "a").exists()
    assert (str(empty.graphs), empty.others) == ("none", ())
    folder = fill(tmp_path / "a", CARRIED | LEFT)
    (tmp_path / "a" / "ab").mkdir()  # torch's own, where the folder is inductor's too
    older = folder.with_name("torch-2.5.0-cpython-311-123456789abc")
    nonsense = folder.with_name("torch-nonsense")
    for other in (older, nonsense):
        (other / "ab").mkdir(parents=True)
        (other / "ab" / "x.so").write_bytes(bytes(2**20))
    plain = dataclasses.asdict(dataclasses.replace(this_machine(), torch="2.5.0 (abc)"))
    (older / MACHINE).write_text(json.dumps(plain))
    (nonsense / MACHINE).write_text("[]")
    found = cache.state(str(tmp_path / "a"))
    assert found.folder == str(folder)
    assert {sort: getattr(found, sort).files for sort in SORTS} == SORTS
    assert str(found.generated) == "2 files, 0.0 MiB"
    assert found.generated.bytes == len(CARRIED["ab/cabc.cpp"]) + len(CARRIED["ab/cabc.so"])
    stale, strange = found.others
    assert (stale.name, stale.kept) == (older.name, FileCount(1, 2**20))
    assert stale.differs.startswith("torch 2.5.0 (abc) instead of ")
    assert "cannot be read" in strange.differs
    assert (f"- stale or foreign: {older.name}", f"1 files, 1.0 MiB: {stale.differs}") in found.rows()


# With a model

PROGRAM = """
import json, sys
import tts_compile as tc
from speech import SHORT, speak
from tts_compile import _compat

what, checkpoint, archive, cache_dir = sys.argv[1:]
with tc.testing.architecture_of(checkpoint):
    tts = tc.load_model("ChatterboxTTS", checkpoint)
policy = tc.ComponentPolicy(execution="inductor", draft_tokens=0)  # one graph
config = tc.CompileConfig.off().replace(t3=policy, cache_dir=cache_dir)
if what == "load":
    moved = tc.load_compile_cache(archive, cache_dir)
    assert moved.loaded, moved
with tc.compile_model(tts, config) as fast:
    tokens = speak(fast, SHORT, max_new_tokens=6).tokens
    row = fast.report().components["t3"]
if what == "save":
    moved = tc.save_compile_cache(archive, cache_dir)
assert (row.ran, row.fallbacks) == ("inductor", ()), row
found = {name: _compat.dynamo_counters()[name] for name in ("inductor", "aot_autograd")}
print(json.dumps({"tokens": tokens, "graphs": row.graphs, "files": moved.files, **found}))
"""


@pytest.fixture
def process(checkpoint: Path, tmp_path: Path) -> Iterator[Callable[[str, Path], dict[str, Any]]]:
    """Runs a separate process that compiles; its C++ compiler writes its arguments to a file."""
    compiler = tmp_path / "g++"
    compiler.write_text(f'#!/bin/sh\necho "$*" >> {tmp_path}/calls\nexec g++ "$@"\n')
    compiler.chmod(0o755)
    search = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = {**os.environ, "PYTHONPATH": search, "CXX": str(compiler)}

    def run(what: str, cache_dir: Path) -> dict[str, Any]:
        (tmp_path / "calls").write_text("")
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, what, checkpoint, tmp_path / "moved.zip", cache_dir],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        calls = (tmp_path / "calls").read_text().splitlines()
        found["compiled"] = [call for call in calls if call not in ("--version", "-v")]
        return found

    return run


def test_another_process_compiles_nothing(process: Callable[[str, Path], dict[str, Any]], tmp_path: Path) -> None:
    first = process("save", tmp_path / "here")
    second = process("load", tmp_path / "there")
    assert second["tokens"] == first["tokens"]
    assert second["graphs"] == first["graphs"] > 0
    assert first["compiled"]
    assert second["compiled"] == []
    assert first["inductor"]["fxgraph_cache_miss"] == first["graphs"]
    for counts, name in (("inductor", "fxgraph_cache"), ("aot_autograd", "autograd_cache")):
        missed = [key for key in second[counts] if key in (f"{name}_miss", f"{name}_bypass")]
        assert (second[counts][f"{name}_hit"], missed) == (first["graphs"], [])
    assert second["files"] == first["files"]


@pytest.fixture
def untrusted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A cache folder without a record of the vector instructions that work."""
    monkeypatch.setattr(_compat, "_trusted", set())
    cache.make_folder(str(tmp_path))
    return str(tmp_path)


def test_vector_instructions_are_tried_once_for_a_folder(untrusted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config, cpu_vec_isa

    claimed, tried = _compat.listed_isas(), list[str]()
    monkeypatch.setattr(_compat, "working_isas", lambda: tried.append(os.environ["TORCHINDUCTOR_CACHE_DIR"]) or claimed)
    for _ in range(3):
        monkeypatch.setattr(_compat, "_trusted", set())  # as in another process
        cache.reuse_cpu_isa(untrusted)
        cache.reuse_cpu_isa(untrusted)
        with cache.using_cache(untrusted):
            assert config.cpp.vec_isa_ok is True
            assert [str(isa) for isa in cpu_vec_isa.valid_vec_isa_list.__wrapped__()] == claimed
        assert config.cpp.vec_isa_ok is None
    assert tried == [str(cache.folder(untrusted))]
    with cache.using_cache(untrusted + "/another"):
        assert config.cpp.vec_isa_ok is None


@pytest.mark.parametrize("kept", [None, "[]", "{", '["avx1024"]'])
def test_vector_instructions_that_do_not_all_work_are_left_to_torch(
    kept: str | None, untrusted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor import config

    monkeypatch.setattr(_compat, "working_isas", list)
    monkeypatch.setattr(_compat, "listed_isas", lambda: ["avx2"])
    if kept is not None:
        (cache.folder(untrusted) / "vectors.json").write_text(kept)
    cache.reuse_cpu_isa(untrusted)
    with cache.using_cache(untrusted):
        assert config.cpp.vec_isa_ok is None


def test_what_the_user_has_decided_about_vectors_stays(untrusted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config

    monkeypatch.setattr(_compat, "working_isas", lambda: pytest.fail("tried"))
    with config.patch({"cpp.vec_isa_ok": False}):
        cache.reuse_cpu_isa(untrusted)
        with cache.using_cache(untrusted):
            assert config.cpp.vec_isa_ok is False


def test_vector_instructions_that_cannot_be_tried_are_left_to_torch(
    untrusted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor import config

    monkeypatch.setattr(_compat, "working_isas", lambda: subprocess.check_output(["no such compiler"]))
    cache.reuse_cpu_isa(untrusted)
    assert not (cache.folder(untrusted) / "vectors.json").exists()
    with cache.using_cache(untrusted):
        assert config.cpp.vec_isa_ok is None
    monkeypatch.setattr(_compat, "working_isas", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cache.reuse_cpu_isa(untrusted)


def test_torch_tries_what_the_processor_names(untrusted: str) -> None:
    with cache.using_cache(untrusted):
        assert set(_compat.working_isas()) <= set(_compat.listed_isas())


def test_blocks_of_several_threads_may_overlap_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the order in which blocks are entered and left, the last one counts, and nothing is left set."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "the user's")
    first, second = (_compat.using_cache_dir(name) for name in ("/a", "/b"))
    first.__enter__()
    second.__enter__()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/b"
    assert _compat.inductor_cache_dir() == "the user's"
    first.__exit__(None, None, None)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/b"
    with _compat.using_cache_dir("/c"):
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/c"
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/b"
    second.__exit__(None, None, None)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "the user's"
    assert _compat.inductor_cache_dir() == "the user's"
