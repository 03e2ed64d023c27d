"""Compiled code on disk: where it is kept, what it belongs to, and how it moves."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import re
import stat
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import platformdirs
import pytest
import torch
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._functorch import config as autograd
from torch._higher_order_ops.auto_functionalize import auto_functionalized_v2
from torch._inductor.runtime import cache_dir_utils

import tts_compile as tc
from tts_compile import _compat, cache, files
from tts_compile.cache import archive, place
from tts_compile.cache.machine import Machine, this_machine
from tts_compile.errors import UnsafeFileError

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
    folder = cache.made(str(cache_dir))
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def held(folder: Path) -> dict[str, bytes]:
    """Every file, but the one for readers."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != place.MACHINE
    }


def held_here(cache_dir: Path) -> dict[str, bytes]:
    return held(cache.folder(str(cache_dir)))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    fill(tmp_path / "a", CARRIED | LEFT)
    path = tmp_path / "compiled.zip"
    tc.save_compile_cache(path, str(tmp_path / "a"))
    return path


@pytest.fixture
def refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Callable[[bytes], str]:
    """The reason why an archive is refused, which is logged too, and for which nothing is written."""

    def reason(packed: bytes) -> str:
        caplog.clear()
        path = tmp_path / "given.zip"
        path.write_bytes(packed)
        found = tc.load_compile_cache(path, str(tmp_path / "b"))
        assert (found.loaded, found.files, found.bytes) == (False, 0, 0)
        assert f"{path} is not loaded: {found.reason}" in caplog.text
        assert not (tmp_path / "b").exists()
        return found.reason

    return reason


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
    folder = cache.made(str(tmp_path / "a"))
    assert folder == cache.folder(str(tmp_path / "a"))
    assert re.fullmatch(r"torch-\d+\.\d+\.\d+\w*-cpython-3\d+-[0-9a-f]{12}", folder.name)
    assert {path.stat().st_mode & 0o777 for path in (folder, folder.parent)} == {0o700}
    assert Machine.from_dict(json.loads((folder / place.MACHINE).read_text())) == this_machine()


def test_a_folder_that_others_can_write_to(tmp_path: Path) -> None:
    folder = fill(tmp_path, CARRIED)
    folder.chmod(0o777)
    for refused in (cache.made, lambda cache_dir: tc.save_compile_cache(tmp_path / "x.zip", cache_dir)):
        with pytest.raises(UnsafeFileError, match="other users"):
            refused(str(tmp_path))
    assert not (tmp_path / "x.zip").exists()


def test_what_is_for_readers_only_may_be_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "replaced", full)
    assert cache.made(str(tmp_path)).is_dir()
    assert "No space left" in caplog.text


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Machine)])
def test_machines_differ_by_everything(field: str) -> None:
    other = dataclasses.replace(this_machine(), **{field: "another"})
    assert other.name != this_machine().name
    assert "another there, " in other.differences(this_machine())
    assert this_machine().differences(this_machine()) == ""


def test_only_the_features_that_differ_are_named() -> None:
    here = dataclasses.replace(this_machine(), features="avx2 fma sse")
    there = dataclasses.replace(here, features="avx2 avx512f fma", torch="2.5.0 (a1)")
    assert there.differences(dataclasses.replace(here, torch="2.6.0 (b2)")) == (
        "torch 2.5.0 (a1) there, 2.6.0 (b2) here; CPU features avx512f there, sse here"
    )
    assert there.differences(dataclasses.replace(there, features="fma")) == (
        "CPU features avx2 avx512f there, no others here"
    )


def test_what_a_machine_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    look = this_machine.__wrapped__
    assert str(torch.__version__) in look().torch
    assert str(Path(torch.__file__).parent) in look().installed
    assert re.search(r"\d+\.\d+", look().compiler)
    monkeypatch.setattr(_compat, "cpu_name", lambda: "CPU part\t: 0xd0c\nFeatures\t: fp asimd aes\nmodel name\t: Core")
    assert (look().cpu, look().features) == ("0xd0c Core", "aes asimd fp")
    monkeypatch.setattr(_compat, "cpu_name", lambda: "Some Processor Family 6, x")
    assert (look().cpu, look().features) == ("Some Processor Family 6, x", "")
    monkeypatch.setattr(_compat, "cpp_compiler", lambda: str(tmp_path))
    assert look().compiler == str(tmp_path)
    monkeypatch.setattr(_compat, "cpp_compiler", lambda: None)
    assert look().compiler == "none"


def test_a_compiler_that_cannot_be_run_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config

    for cxx in ("", "no-such-compiler"):
        monkeypatch.setattr(config.cpp, "cxx", (cxx,))
        assert _compat.cpp_compiler() is None


# An archive


def test_what_was_saved_is_loaded(saved: Path, tmp_path: Path) -> None:
    size = sum(map(len, CARRIED.values()))
    assert tc.save_compile_cache(saved, str(tmp_path / "a")) == tc.SavedCache(str(saved), len(CARRIED), size)
    assert saved.stat().st_size < size  # packed
    cache_dir = str(tmp_path / "b")
    assert tc.load_compile_cache(saved, cache_dir) == tc.LoadedCache(True, "", len(CARRIED), size)
    assert held_here(tmp_path / "b") == CARRIED
    for path in cache.folder(cache_dir).rglob("*.so"):
        files.refuse_unsafe(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_same_code_makes_the_same_archive(saved: Path, tmp_path: Path) -> None:
    tc.load_compile_cache(saved, str(tmp_path / "b"))
    again = tmp_path / "again.zip"
    tc.save_compile_cache(again, str(tmp_path / "b"))
    assert again.read_bytes() == saved.read_bytes()


def test_files_that_are_there_are_kept(saved: Path, tmp_path: Path) -> None:
    mine = {"ab/cabc.so": b"mine", "tts_compile/tuned-2.json": b"chosen"}
    fill(tmp_path / "b", mine)
    assert tc.load_compile_cache(saved, str(tmp_path / "b")).files == len(CARRIED) - 1
    assert held_here(tmp_path / "b") == CARRIED | mine
    assert tc.load_compile_cache(saved, str(tmp_path / "b")) == tc.LoadedCache(True)


SEGMENT = st.text("abz019_-", min_size=1, max_size=6)
FOLDER = st.sampled_from(["ab", "fxgraph", "aotautograd/akey", "triton/0"])


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(st.builds("{}/{}.x".format, FOLDER, SEGMENT), st.binary(max_size=300), min_size=1, max_size=5))
def test_any_files_come_back(contents: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        fill(Path(folder, "a"), contents)
        tc.save_compile_cache(Path(folder, "x.zip"), str(Path(folder, "a")))
        assert tc.load_compile_cache(Path(folder, "x.zip"), str(Path(folder, "b"))).loaded
        assert held_here(Path(folder, "b")) == contents


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("packed")
    fill(folder / "a", CARRIED)
    tc.save_compile_cache(folder / "x.zip", str(folder / "a"))
    return (folder / "x.zip").read_bytes()


def is_refused_or_whole(damaged: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "x.zip").write_bytes(damaged)
        found = tc.load_compile_cache(Path(folder, "x.zip"), str(Path(folder, "b")))
        if found.loaded:
            assert held_here(Path(folder, "b")) == CARRIED
        else:
            assert found.reason
            assert not Path(folder, "b").exists()


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_damaged_bytes_are_refused_or_harmless(packed: bytes, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(packed) - 1))
    gone = data.draw(st.integers(0, len(packed) - start))
    is_refused_or_whole(packed[:start] + data.draw(st.binary(max_size=40)) + packed[start + gone :])
    flipped = bytes([packed[start] ^ data.draw(st.integers(1, 255))])
    is_refused_or_whole(packed[:start] + flipped + packed[start + 1 :])
    is_refused_or_whole(packed[:start])


def repacked(packed: bytes, change: Callable[[dict[str, Any]], object], *more: tuple[zipfile.ZipInfo, bytes]) -> bytes:
    """The same archive with another manifest, and more files, which the manifest knows."""
    with zipfile.ZipFile(io.BytesIO(packed)) as source:
        contents = {name: source.read(name) for name in source.namelist()}
    manifest = json.loads(contents.pop("manifest.json"))
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in contents.items():
            made.writestr(name, content)
        for info, content in more:
            info.compress_type = zipfile.ZIP_DEFLATED
            made.writestr(info, content)
            entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            manifest["files"][info.filename] = entry
        change(manifest)
        made.writestr("manifest.json", json.dumps(manifest))
    return target.getvalue()


def test_another_kind_of_machine(packed: bytes, refused: Callable[[bytes], str]) -> None:
    def older(manifest: dict[str, Any]) -> None:
        manifest["machine"]["torch"] = "2.5.0 (abc)"

    assert refused(repacked(packed, older)) == f"torch 2.5.0 (abc) there, {this_machine().torch} here"


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("format", 2, "format 2 there, 1 here"),
        ("machine", {}, "which machine"),
        ("machine", None, "which machine"),
        ("files", [], "damaged"),
        ("files", {}, "not those of the manifest"),
        ("files", None, "damaged"),
    ],
)
def test_a_manifest_of_another_make(
    packed: bytes, refused: Callable[[bytes], str], key: str, value: Any, reason: str
) -> None:
    assert reason in refused(repacked(packed, lambda manifest: manifest.update({key: value})))


@pytest.mark.parametrize("entry", [{"bytes": 6}, {"bytes": 7, "sha256": ""}, {"bytes": 6, "sha256": "0"}, 6, None])
def test_an_entry_that_does_not_fit(packed: bytes, refused: Callable[[bytes], str], entry: Any) -> None:
    assert "damaged" in refused(repacked(packed, lambda manifest: manifest["files"].update({"ab/cabc.cpp": entry})))


def of_mode(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


@pytest.mark.parametrize(
    "info",
    [
        *(zipfile.ZipInfo(name) for name in ("../x", "/x", "a/../../x", "a//x", "./x", "C:x", "a\\x", "a/")),
        *(zipfile.ZipInfo(f"tts_compile/{name}") for name in ("tuned-1.json", "x.py")),
        *(zipfile.ZipInfo(name) for name in (place.MACHINE, "locks/x", ".x/x", "a/.x")),
        *(of_mode("a/x", mode) for mode in (stat.S_IFLNK | 0o777, stat.S_IFDIR, stat.S_IFCHR)),
    ],
    ids=lambda info: f"{info.filename} {info.external_attr >> 28:o}",
)
def test_what_no_archive_may_hold(packed: bytes, refused: Callable[[bytes], str], info: zipfile.ZipInfo) -> None:
    name = info.filename
    assert repr(name)[1:-1] in refused(repacked(packed, lambda _: None, (info, b"/etc/passwd")))


def test_too_much_is_refused_before_it_is_unpacked(
    packed: bytes, refused: Callable[[bytes], str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bomb = repacked(packed, lambda _: None, (zipfile.ZipInfo("ab/zeros"), bytes(2**20)))
    assert len(bomb) < 2**12
    monkeypatch.setattr(archive, "_LARGEST", 2**19)
    read: list[str] = []
    read_one = zipfile.ZipFile.read
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda self, info: read.append(info.filename) or read_one(self, info))
    assert "GiB of compiled code" in refused(bomb)
    assert read == ["manifest.json"]
    monkeypatch.setattr(archive, "_LONGEST_MANIFEST", 10)
    assert "manifest is too long" in refused(packed)
    monkeypatch.setattr(archive, "_LARGEST", 10)
    fill(tmp_path / "a", CARRIED)
    with pytest.raises(tc.CompilationError, match="GiB of compiled code"):
        tc.save_compile_cache(tmp_path / "x.zip", str(tmp_path / "a"))
    assert not (tmp_path / "x.zip").exists()


def test_what_is_no_archive(packed: bytes, refused: Callable[[bytes], str]) -> None:
    assert "BadZipFile" in refused(b"no zip file")
    other = io.BytesIO()
    with zipfile.ZipFile(other, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("readme", "hello")
    assert refused(other.getvalue()) == "it is no archive of compiled code"
    with zipfile.ZipFile(other, "a", zipfile.ZIP_LZMA) as made:
        made.writestr("more", "hello")
    assert "compression" in refused(other.getvalue())
    twice = io.BytesIO(packed)
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(twice, "a", zipfile.ZIP_DEFLATED) as made:
        made.writestr("ab/cabc.so", "another")
    assert "twice" in refused(twice.getvalue())


def test_files_that_cannot_be_read_or_written(saved: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "missing.zip", tmp_path):
        with pytest.raises(tc.InputError, match="cannot be read"):
            tc.load_compile_cache(path, str(tmp_path / "b"))
    for path in (tmp_path / "missing" / "x.zip", tmp_path / "a"):
        with pytest.raises(tc.InputError, match="cannot be written"):
            tc.save_compile_cache(path, str(tmp_path / "a"))
    with pytest.raises(tc.CompilationError, match=r"nothing is compiled yet .* run warmup\(\)"):
        tc.save_compile_cache(tmp_path / "x.zip", str(tmp_path / "b"))
    (tmp_path / "file").touch()
    with pytest.raises(tc.CompilationError, match="cannot be kept"):
        tc.load_compile_cache(saved, str(tmp_path / "file"))


def test_a_full_disk_leaves_whole_files_only(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.made(str(tmp_path / "b"))
    write = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if len(held_here(tmp_path / "b")) > 2:
            write(path, content[:1])
            raise OSError(28, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(tc.CompilationError, match="No space left"):
        tc.load_compile_cache(saved, str(tmp_path / "b"))
    left = held_here(tmp_path / "b")
    assert len(left) == 2
    assert left.items() <= CARRIED.items()


def test_what_refers_to_others_comes_later_and_whole(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    move = os.replace

    def noted(source: Path, target: Path) -> None:
        if target.suffix != ".json":
            assert Path(source).parent.name.startswith(".")  # torch reads every file in the folder of a graph
            seen.append(str(cache.place.sort_of(PurePosixPath(target.relative_to(cache.folder(str(tmp_path / "b")))))))
        move(source, target)

    monkeypatch.setattr(archive.os, "replace", noted)
    tc.load_compile_cache(saved, str(tmp_path / "b"))
    assert seen == ["generated", "generated", "native", "graphs", "autograd"]


def test_a_library_that_is_being_linked_is_waited_for(tmp_path: Path) -> None:
    folder = fill(tmp_path / "a", {"ab/cabc.so": b"half", "locks/cabc.lock": b""})
    saving = threading.Thread(target=tc.save_compile_cache, args=(tmp_path / "x.zip", str(tmp_path / "a")))
    with FileLock(folder / "locks" / "cabc.lock"):
        saving.start()
        saving.join(0.3)
        assert saving.is_alive()
        (folder / "ab" / "cabc.so").write_bytes(b"whole")
    saving.join()
    tc.load_compile_cache(tmp_path / "x.zip", str(tmp_path / "b"))
    assert held_here(tmp_path / "b") == {"ab/cabc.so": b"whole"}


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    folder = fill(tmp_path / "a", CARRIED)
    (folder / "ab" / "link").symlink_to(tmp_path / "secret")
    assert tc.save_compile_cache(tmp_path / "x.zip", str(tmp_path / "a")).files == len(CARRIED)


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
    (older / place.MACHINE).write_text(json.dumps(plain))
    (nonsense / place.MACHINE).write_text("[]")
    found = cache.state(str(tmp_path / "a"))
    assert found.folder == str(folder)
    assert {sort: getattr(found, sort).files for sort in SORTS} == SORTS
    assert str(found.generated) == "2 files, 0.0 MiB"
    assert found.generated.bytes == len(CARRIED["ab/cabc.cpp"]) + len(CARRIED["ab/cabc.so"])
    stale, strange = found.others
    assert (stale.name, stale.kept) == (older.name, cache.Kept(1, 2**20))
    assert stale.differs.startswith("torch 2.5.0 (abc) there")
    assert "cannot be read" in strange.differs
    assert (f"- stale or foreign: {older.name}", f"1 files, 1.0 MiB: {stale.differs}") in found.rows()


# With a model

PROGRAM = """
import json, sys
import tts_compile as tc
from speech import SHORT, speak
from tts_compile import _compat

what, checkpoint, archive, cache_dir = sys.argv[1:]
tts = tc.testing.load_checkpoint(checkpoint)
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
    """A process of its own that compiles, with a compiler that writes down what it is asked for."""
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
    """A folder whose vector instructions nobody knows yet."""
    monkeypatch.setattr(_compat, "_trusted", set())
    cache.made(str(tmp_path))
    return str(tmp_path)


def test_vector_instructions_are_tried_once_for_a_folder(untrusted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config, cpu_vec_isa

    claimed, tried = _compat.claimed_vectors(), list[str]()
    monkeypatch.setattr(
        _compat, "tried_vectors", lambda: tried.append(os.environ["TORCHINDUCTOR_CACHE_DIR"]) or claimed
    )
    for _ in range(3):
        monkeypatch.setattr(_compat, "_trusted", set())  # as in another process
        cache.know_vectors(untrusted)
        cache.know_vectors(untrusted)
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

    monkeypatch.setattr(_compat, "tried_vectors", list)
    monkeypatch.setattr(_compat, "claimed_vectors", lambda: ["avx2"])
    if kept is not None:
        (cache.folder(untrusted) / "vectors.json").write_text(kept)
    cache.know_vectors(untrusted)
    with cache.using_cache(untrusted):
        assert config.cpp.vec_isa_ok is None


def test_what_the_user_has_decided_about_vectors_stays(untrusted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config

    monkeypatch.setattr(_compat, "tried_vectors", lambda: pytest.fail("tried"))
    with config.patch({"cpp.vec_isa_ok": False}):
        cache.know_vectors(untrusted)
        with cache.using_cache(untrusted):
            assert config.cpp.vec_isa_ok is False


def test_torch_tries_what_the_processor_names(untrusted: str) -> None:
    with cache.using_cache(untrusted):
        assert set(_compat.tried_vectors()) <= set(_compat.claimed_vectors())
