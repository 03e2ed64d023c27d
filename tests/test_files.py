"""Files are complete or absent; code is not loaded from a folder that another user can write to."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tts_compile as tc
from conftest import components
from tts_compile import testing
from tts_compile.errors import UnsafeFileError
from tts_compile.families import family_named
from tts_compile.utils import files


def test_a_file_is_replaced_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    path.write_text("before")
    with files.replaced(path) as beside:
        beside.write_text("after")
        assert path.read_text() == "before"
    assert path.read_text() == "after"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_earlier_content(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "kept.json"
    path.write_text("before")

    def fail() -> None:
        with files.replaced(path) as beside:
            beside.write_text("half")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


@given(st.binary(max_size=200), st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_seal_is_broken_by_any_change(tmp_path: Path, content: bytes, data: st.DataObject) -> None:
    path = tmp_path / "code"
    path.write_bytes(content)
    assert not files.sealed(path)
    files.seal(path)
    whole = path.read_bytes()
    assert files.sealed(path)
    assert whole.startswith(content)
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    assert not files.sealed(path)
    at = data.draw(st.integers(0, len(whole) - 1))
    path.write_bytes(whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :])
    assert not files.sealed(path)


def test_a_change_far_inside_breaks_the_seal(tmp_path: Path) -> None:
    path = tmp_path / "code"
    path.write_bytes(bytes(5000))
    files.seal(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:4000] + b"x" + whole[4001:])
    assert not files.sealed(path)


def test_two_writers_do_not_disturb_each_other(tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    with files.replaced(path) as first:
        with files.replaced(path) as second:
            first.write_text("first")
            second.write_text("second")
        assert path.read_text() == "second"
    assert path.read_text() == "first"


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(tc.CompilationError, match="cannot be kept"):
        files.own_folder(tmp_path / "file" / "folder")


def test_a_new_folder_is_its_owners_alone(tmp_path: Path) -> None:
    folder = files.own_folder(tmp_path / "a" / "b")
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="there are no users here")
@pytest.mark.parametrize("mode", [0o702, 0o777])
def test_a_folder_that_others_can_write_to(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(UnsafeFileError, match="other users"):
        files.own_folder(folder)


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="there are no users here")
def test_a_group_of_the_users_name_may_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o770)
    monkeypatch.setattr(files, "_is_own_group", lambda number: True)
    files.own_folder(folder)
    monkeypatch.setattr(files, "_is_own_group", lambda number: False)
    with pytest.raises(UnsafeFileError, match="other users"):
        files.own_folder(folder)


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="there are no users here")
def test_the_group_of_the_users_name(monkeypatch: pytest.MonkeyPatch) -> None:
    import grp
    import pwd

    groups = {1: SimpleNamespace(gr_name="me"), 2: SimpleNamespace(gr_name="staff")}
    monkeypatch.setattr(pwd, "getpwuid", lambda number: SimpleNamespace(pw_name="me"))
    monkeypatch.setattr(grp, "getgrgid", lambda number: groups[number])
    assert [files._is_own_group(number) for number in (1, 2, 3)] == [True, False, False]


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="there are no users here")
def test_root_is_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 4321)
    files.refuse_unsafe(Path("/"))


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="there are no users here")
def test_a_folder_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = os.getuid()
    if owner == 0:
        os.chown(tmp_path, 4321, -1)  # root's own files are trusted by everybody
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    with pytest.raises(UnsafeFileError, match="belongs to another user"):
        files.own_folder(tmp_path)


def test_an_unsafe_cache_folder_means_eager_and_an_event(tts: Any, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    config = tc.CompileConfig(cache_dir=str(tmp_path))
    with tc.compile_model(tts, config) as fast:
        for name in ("t3", "flow", "vocoder"):
            event = fast.report().components[name].fallbacks[0]
            assert (event.phase, event.action) == ("compile", "eager instead of inductor")
            assert "written by other users" in event.error
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(tc.CompilationError, match="written by other users"):
        tc.compile_model(tts, config.replace(fallback="raise"))


@pytest.mark.usefixtures("recorder")
def test_an_unsafe_cache_folder_means_no_captured_graphs(tts: Any, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with tc.compile_model(
        tts, tc.CompileConfig.off().replace(t3=tc.ComponentPolicy(), cache_dir=str(tmp_path))
    ) as fast:
        events = fast.report().components["t3"].fallbacks
        assert components(fast)["t3"].fallback.level == "eager"
    assert [event.action for event in events] == ["inductor instead of cuda_graph", "eager instead of inductor"]


def test_a_failed_checkpoint_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import safetensors.torch

    (tmp_path / "ve.safetensors").write_bytes(b"the one before")

    def full(tensors: Any, path: Path) -> None:
        path.write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        testing.write_checkpoint(tmp_path)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"the one before"]


def test_a_checkpoint_that_does_not_fit_is_not_damaged(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from chatterbox.tts import ChatterboxTTS

    def short(*args: Any) -> None:
        raise MemoryError("none left")

    monkeypatch.setattr(ChatterboxTTS, "from_local", short)
    with pytest.raises(MemoryError, match="none left"):
        testing.load_checkpoint(checkpoint)


class Harmful:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def link(source: Path, target: Path) -> None:
    for path in source.iterdir():
        (target / path.name).symlink_to(path)


@pytest.mark.parametrize(
    "name", ["ve.safetensors", "t3_cfg.safetensors", "s3gen.safetensors", "tokenizer.json", "conds.pt"]
)
def test_a_damaged_checkpoint_is_refused(checkpoint: Path, tmp_path: Path, name: str) -> None:
    whole = (checkpoint / name).read_bytes()[: 1 << 20]
    for number, content in enumerate((whole[:100], pickle.dumps(Harmful(tmp_path / "harm")))):
        folder = tmp_path / str(number)
        folder.mkdir()
        link(checkpoint, folder)
        (folder / name).unlink()
        (folder / name).write_bytes(content)
        with pytest.raises(tc.InputError, match="cannot be loaded"):
            testing.load_checkpoint(folder)
    assert not (tmp_path / "harm").exists()


def test_damaged_weights_that_torch_saved_are_refused(tmp_path: Path) -> None:
    family = family_named("multilingual")
    for name in family.files.names:
        (tmp_path / name).touch()
    for content in (b"PK", pickle.dumps(Harmful(tmp_path / "harm"))):
        (tmp_path / family.files.weights["s3gen"]).write_bytes(content)
        with pytest.raises(tc.InputError, match="cannot be loaded"):
            testing.load_checkpoint(tmp_path, "multilingual")
    torch.save({"other": torch.zeros(1)}, tmp_path / family.files.weights["s3gen"])
    with pytest.raises(tc.InputError, match=r"s3gen\.pt holds no tensor named flow"):
        testing.load_checkpoint(tmp_path, "multilingual")
    assert not (tmp_path / "harm").exists()
