"""Archives of compiled code: loading restores every saved file; a damaged or foreign archive is refused as a whole."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import stat
import tempfile
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

import tts_compile as tc
from test_cache import CARRIED, LEFT, fill
from tts_compile import cache
from tts_compile.cache import archive
from tts_compile.cache.folder import MACHINE, kind_of
from tts_compile.cache.machine import this_machine
from tts_compile.utils import files


def held(cache_dir: Path) -> dict[str, bytes]:
    """Returns every file in this machine's folder except its description."""
    folder = cache.folder(str(cache_dir))
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != MACHINE
    }


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    fill(tmp_path / "a", CARRIED | LEFT)
    path = tmp_path / "compiled.zip"
    tc.save_compile_cache(path, str(tmp_path / "a"))
    return path


@pytest.fixture
def refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Callable[[bytes], str]:
    """Loads an archive that must be refused and returns the reason; checks that it is logged and nothing is written."""

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


def test_what_was_saved_is_loaded(saved: Path, tmp_path: Path) -> None:
    size = sum(map(len, CARRIED.values()))
    assert tc.save_compile_cache(saved, str(tmp_path / "a")) == tc.SavedCache(str(saved), len(CARRIED), size)
    assert saved.stat().st_size < size  # packed
    cache_dir = str(tmp_path / "b")
    assert tc.load_compile_cache(saved, cache_dir) == tc.LoadedCache(True, "", len(CARRIED), size)
    assert held(tmp_path / "b") == CARRIED
    for path in cache.folder(cache_dir).rglob("*.so"):
        files.refuse_unsafe(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_same_code_makes_the_same_archive(saved: Path, tmp_path: Path) -> None:
    tc.load_compile_cache(saved, str(tmp_path / "b"))
    again = tmp_path / "again.zip"
    tc.save_compile_cache(again, str(tmp_path / "b"))
    assert again.read_bytes() == saved.read_bytes()
    with zipfile.ZipFile(again) as made:
        assert {info.date_time[0] for info in made.infolist()} == {1980}  # at any time


def test_files_that_are_there_are_kept(saved: Path, tmp_path: Path) -> None:
    mine = {"ab/cabc.so": b"mine", "tts_compile/tuned-2.json": b"chosen"}
    fill(tmp_path / "b", mine)
    assert tc.load_compile_cache(saved, str(tmp_path / "b")).files == len(CARRIED) - 1
    assert held(tmp_path / "b") == CARRIED | mine
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
        assert held(Path(folder, "b")) == contents


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
            assert held(Path(folder, "b")) == CARRIED
        else:
            assert found.reason
            assert not Path(folder, "b").exists()


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_damaged_bytes_are_refused_or_harmless(packed: bytes, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(packed) - 1))
    gone = data.draw(st.integers(0, len(packed) - start))
    is_refused_or_whole(packed[:start] + data.draw(st.binary(max_size=40)) + packed[start + gone :])


def test_every_byte_may_be_damaged(packed: bytes) -> None:
    whole = {PurePosixPath(name): content for name, content in CARRIED.items()}
    for place_in_file in range(len(packed)):
        before, byte, after = packed[:place_in_file], packed[place_in_file], packed[place_in_file + 1 :]
        for damaged in (before, *(before + bytes([byte ^ bits]) + after for bits in (1, 0x80, 0xFF))):
            with contextlib.suppress(archive.RefusedError):
                assert archive.unpacked(damaged) == whole


def repacked(packed: bytes, change: Callable[[dict[str, Any]], object], *more: tuple[zipfile.ZipInfo, bytes]) -> bytes:
    """Returns the archive with a changed manifest and more files, which the manifest lists."""
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
            manifest["sha256"][info.filename] = hashlib.sha256(content).hexdigest()
        change(manifest)
        made.writestr("manifest.json", json.dumps(manifest))
    return target.getvalue()


def test_another_kind_of_machine(packed: bytes, refused: Callable[[bytes], str]) -> None:
    def older(manifest: dict[str, Any]) -> None:
        manifest["machine"]["torch"] = "2.5.0 (abc)"

    assert refused(repacked(packed, older)) == f"torch 2.5.0 (abc) instead of {this_machine().torch}"


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("format", 2, "format 2 instead of 1"),
        ("machine", {}, "not described"),
        ("machine", None, "not described"),
        ("sha256", [], "damaged"),
        ("sha256", {}, "not those of the manifest"),
        ("sha256", None, "damaged"),
    ],
)
def test_a_manifest_of_another_make(
    packed: bytes, refused: Callable[[bytes], str], key: str, value: Any, reason: str
) -> None:
    assert reason in refused(repacked(packed, lambda manifest: manifest.update({key: value})))


@pytest.mark.parametrize("digest", ["", 6, None])
def test_a_digest_that_does_not_fit(packed: bytes, refused: Callable[[bytes], str], digest: Any) -> None:
    made = repacked(packed, lambda manifest: manifest["sha256"].update({"ab/cabc.cpp": digest}))
    assert refused(made) == "damaged: ab/cabc.cpp is not what was saved"


@pytest.mark.parametrize("key", ["format", "machine", "sha256"])
def test_a_manifest_that_lacks_something(packed: bytes, refused: Callable[[bytes], str], key: str) -> None:
    assert "damaged" in refused(repacked(packed, lambda manifest: manifest.pop(key)))


def of_mode(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


@pytest.mark.parametrize(
    ("info", "why"),
    [
        *((zipfile.ZipInfo(name), "not the name of a file") for name in ("../x", "/x", "a/../../x", "a/..")),
        *((zipfile.ZipInfo(name), "not the name of a file") for name in ("a//x", "./x", ".", "C:x", "a\\x", "a/")),
        *((zipfile.ZipInfo(f"tts_compile/{name}"), "not compiled code") for name in ("tuned-1.json", "x.py")),
        *((zipfile.ZipInfo(name), "not compiled code") for name in (MACHINE, "locks/x", ".x/x", "a/.x")),
        *((of_mode("a/x", mode), "not a regular file") for mode in (stat.S_IFLNK | 0o777, stat.S_IFDIR, stat.S_IFCHR)),
    ],
    ids=lambda given: given if isinstance(given, str) else f"{given.filename} {given.external_attr >> 28:o}",
)
def test_what_no_archive_may_hold(
    packed: bytes, refused: Callable[[bytes], str], info: zipfile.ZipInfo, why: str
) -> None:
    found = refused(repacked(packed, lambda _: None, (info, b"/etc/passwd")))
    assert repr(info.filename)[1:-1] in found
    assert why in found


def test_too_much_is_refused_before_it_is_unpacked(
    packed: bytes, refused: Callable[[bytes], str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bomb = repacked(packed, lambda _: None, (zipfile.ZipInfo("ab/zeros"), bytes(2**20)))
    assert len(bomb) < 2**12
    monkeypatch.setattr(archive, "MAX_CONTENT", 2**19)
    read: list[str] = []
    read_one = zipfile.ZipFile.read
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda self, info: read.append(info.filename) or read_one(self, info))
    assert "GiB of compiled code" in refused(bomb)
    assert read == ["manifest.json"]
    monkeypatch.setattr(archive, "MAX_MANIFEST", 10)
    assert "manifest is too long" in refused(packed)
    monkeypatch.setattr(archive, "MAX_CONTENT", 10)
    fill(tmp_path / "a", CARRIED)
    with pytest.raises(tc.CompilationError, match="GiB of compiled code"):
        tc.save_compile_cache(tmp_path / "x.zip", str(tmp_path / "a"))
    assert not (tmp_path / "x.zip").exists()


def test_what_is_no_archive(packed: bytes, refused: Callable[[bytes], str]) -> None:
    assert "BadZipFile" in refused(b"no zip file")
    other = io.BytesIO()
    with zipfile.ZipFile(other, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("readme", "hello")
    assert refused(other.getvalue()) == "it is not an archive of compiled code"
    with zipfile.ZipFile(other, "a", zipfile.ZIP_DEFLATED) as made:
        made.writestr("manifest.json", "[]")
    assert "damaged" in refused(other.getvalue())
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
    cache.make_folder(str(tmp_path / "b"))
    write = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if len(held(tmp_path / "b")) > 2:
            write(path, content[:1])
            raise OSError(28, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(tc.CompilationError, match="No space left"):
        tc.load_compile_cache(saved, str(tmp_path / "b"))
    left = held(tmp_path / "b")
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
            seen.append(str(kind_of(PurePosixPath(target.relative_to(cache.folder(str(tmp_path / "b")))))))
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
    assert held(tmp_path / "b") == {"ab/cabc.so": b"whole"}


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    folder = fill(tmp_path / "a", CARRIED)
    (folder / "ab" / "link").symlink_to(tmp_path / "secret")
    assert tc.save_compile_cache(tmp_path / "x.zip", str(tmp_path / "a")).files == len(CARRIED)
