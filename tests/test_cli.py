"""The installed command, run as a user runs it."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import tts_compile as tc
from tts_compile import cache, config
from tts_compile.bench import batch, plots, startup, t3, voice
from tts_compile.bench.result import Result, Section
from tts_compile.cli import bench as commands
from tts_compile.cli import doctor
from tts_compile.cli import main as cli
from tts_compile.measuring.stats import Ratio


def run(*arguments, **environment):
    script = Path(sys.executable).parent / "tts-compile"
    command = [str(script)] if script.exists() else [sys.executable, "-m", "tts_compile.cli.main"]
    return subprocess.run(
        [*command, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
    )


def test_help_of_every_command(capsys):
    benches = [["bench", subject] for subject in commands.SUBJECTS]
    for command in ([], ["demo"], ["bench"], *benches, ["warmup"], ["doctor"]):
        with pytest.raises(SystemExit) as exit_info:
            cli.main([*command, "--help"])
        assert exit_info.value.code == 0
        assert "usage: tts-compile" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["sing"],
        ["demo", "--size", "huge"],
        ["demo", "--unknown"],
        ["bench"],
        ["bench", "watermark"],
        ["bench", "t3", "--tokens", "2"],
        ["bench", "t3", "--repeats", "many"],
        ["bench", "voice", "--seconds", "0"],
        ["bench", "flow", "--tokens", "7"],
        ["bench", "flow", "--text", "Hello."],
        ["bench", "vocoder", "--repeats", "0"],
        ["bench", "e2e", "--tokens", "few"],
        ["bench", "e2e", "--lengths"],
        ["bench", "batch", "--chars", "60"],
        ["bench", "load", "--dtype", "int3"],
        ["bench", "soak", "--calls", "12"],
        ["bench", "report"],
        ["demo", "--model", "pretrained", "--checkpoint-dir", "somewhere"],
    ],
)
def test_wrong_command_lines_exit_with_2_and_usage(arguments, capsys):
    with pytest.raises(SystemExit) as exit_info:
        cli.main(arguments)
    assert exit_info.value.code == 2
    assert "usage: tts-compile" in capsys.readouterr().err


def test_doctor_prints_json_and_nothing_else():
    done = run("doctor", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found["components"]) == set(config.COMPONENTS)
    assert all(plan["runs"] and plan["why"] for plan in found["components"].values())
    assert found["machine"]["versions"]["torch"]
    assert found["cache"]["folder"].startswith(found["cache_dir"])
    assert found["cache"]["machine"]["python"] == sys.implementation.cache_tag


def test_doctor_prints_a_table(capsys):
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    for word in ("torch", "C++ compiler", "compile cache", "- FX graphs", "will run", "watermark"):
        assert word in out


def test_doctor_says_when_chatterbox_is_missing(monkeypatch, capsys):
    about = doctor.machine.describe()
    about["versions"]["chatterbox-tts"] = None
    monkeypatch.setattr(doctor.machine, "describe", lambda: about)
    assert cli.main(["doctor"]) == 1
    assert "problem: chatterbox-tts is not installed" in capsys.readouterr().out


def test_doctor_says_when_compiled_code_cannot_be_kept(monkeypatch, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TTS_COMPILE_CACHE_DIR", str(tmp_path / "file" / "cache"))
    assert cli.main(["doctor"]) == 1
    assert "problem: compiled code cannot be kept" in capsys.readouterr().out


def test_doctor_says_when_others_can_write_compiled_code(monkeypatch, capsys, tmp_path):
    tmp_path.chmod(0o777)
    monkeypatch.setenv("TTS_COMPILE_CACHE_DIR", str(tmp_path))
    assert cli.main(["doctor"]) == 1
    assert "can be written by other users" in capsys.readouterr().out
    monkeypatch.setenv("TTS_COMPILE_CACHE_DIR", str(tmp_path / "made later"))
    assert cli.main(["doctor"]) == 0


def test_doctor_follows_the_kill_switch(monkeypatch):
    monkeypatch.setenv("TTS_COMPILE", "0")
    plans = doctor.examine().components
    assert {plan.runs for plan in plans.values()} == {"stock"}


def test_doctor_without_a_compiler_plans_no_inductor(monkeypatch):
    monkeypatch.delenv("TTS_COMPILE", raising=False)
    monkeypatch.setattr(doctor._compat, "cpp_compiler", lambda: None)
    monkeypatch.setattr(doctor.torch.cuda, "is_available", lambda: False)
    plan = doctor.examine().components["t3"]
    assert plan.runs == "eager"
    assert "compiler" in plan.why


def test_a_wrong_configuration_is_a_message_and_not_a_traceback(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("TTS_COMPILE_CONFIG", str(tmp_path / "missing.toml"))
    assert cli.main(["doctor"]) == 1
    assert "missing.toml" in capsys.readouterr().err


def test_a_folder_without_a_model_is_a_message_and_not_a_traceback(tmp_path):
    pytest.importorskip("chatterbox")
    done = run("demo", "--model", tmp_path, "--json")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "is not a checkpoint folder" in done.stderr
    assert "Traceback" not in done.stderr


def test_demo_speaks_the_same_tokens_and_writes_two_waves(checkpoint, tmp_path):
    done = run("demo", "--size", "small", "--checkpoint-dir", checkpoint, "--out", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["passed"]
    assert found["tokens_identical"]
    assert found["stock"]["tokens"] == found["compiled"]["tokens"] > 0
    assert found["bit_identical"] or found["signal_to_error_db"] >= 60
    assert found["ran"]["t3"] != "stock"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["compiled.wav", "stock.wav"]
    assert "Sampling" not in done.stderr


def test_warmup_reports_seconds_for_every_component(checkpoint, tmp_path):
    eager = tmp_path / "eager.toml"  # compiling is for the demo's test
    policies = "".join(f'[{name}]\nexecution = "eager"\n' for name in ("t3", "flow", "vocoder"))
    eager.write_text(f"warmup_samples = 1\n{policies}")
    kept = cache.make_folder(str(tmp_path)) / "ab" / "kept.so"
    kept.parent.mkdir()
    kept.write_bytes(b"compiled before")
    environment = {"TTS_COMPILE_CONFIG": str(eager), "TTS_COMPILE_CACHE_DIR": str(tmp_path)}
    done = run("warmup", "--model", checkpoint, "--json", "--save", tmp_path / "made" / "a.zip", **environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found["seconds"]) == set(config.COMPONENTS)
    assert found["saved"] == {"path": str(tmp_path / "made" / "a.zip"), "files": 1, "bytes": 15}
    assert tc.load_compile_cache(tmp_path / "made" / "a.zip", str(tmp_path / "b")).files == 1


def test_a_failed_warmup_saves_nothing(checkpoint, monkeypatch, capsys, tmp_path):
    (tmp_path / "none.toml").write_text("warmup_samples = 0\n")
    kept = tmp_path / "cache"
    kept.mkdir()
    kept.chmod(0o777)
    monkeypatch.setenv("TTS_COMPILE_CONFIG", str(tmp_path / "none.toml"))
    monkeypatch.setenv("TTS_COMPILE_CACHE_DIR", str(kept))
    assert cli.main(["warmup", "--model", str(checkpoint), "--save", str(kept / "a.zip")]) == 1
    assert "written by other users" in capsys.readouterr().err
    assert list(kept.iterdir()) == []


def test_warmup_refuses_a_place_that_cannot_be_written_before_compiling(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(cli, "load_quickly", lambda *args: pytest.fail("loaded nevertheless"))
    for place in (tmp_path, tmp_path / "file" / "a.zip"):
        (tmp_path / "file").touch()
        assert cli.main(["warmup", "--save", str(place)]) == 1
        assert str(tmp_path) in capsys.readouterr().err


def test_different_tokens_are_a_failure(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(cli, "_demo", lambda args: cli._Outcome("a table", {"passed": False}, False))
    assert cli.main(["demo", "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == {"passed": False}


class Pretended(Result):
    """A result with one table."""

    subject, title, kept = "pretended", "A bench", True
    shortfalls = ()

    def to_dict(self):
        return {"passed": True}

    def sections(self):
        return [Section([("what", "found"), ("speed", Ratio(2.0, (1.5, 2.5)))])]


def replace_t3(monkeypatch, run):
    """Makes ``bench t3`` call ``run`` with its settings."""
    subject = commands.Subject(t3.Settings, run, "", None)
    monkeypatch.setitem(commands.SUBJECTS, "t3", subject)


@pytest.fixture
def pretended(monkeypatch):
    replace_t3(monkeypatch, lambda settings: Pretended(settings=settings))


def test_bench_results_go_to_files_too(pretended, capsys, tmp_path):
    made = tmp_path / "made"
    files = ["--out", made / "a.json", "--markdown", made / "a.md", "--html", made / "a.html"]
    assert cli.main(["bench", "t3", *map(str, files)]) == 0
    assert "2.00x (1.50 to 2.50): gain" in capsys.readouterr().out
    assert json.loads((made / "a.json").read_text()) == {"passed": True}
    assert (made / "a.md").read_text().startswith("# A bench\n\n| what ")
    assert "<h1>A bench</h1>" in (made / "a.html").read_text()
    assert sorted(path.name for path in made.iterdir()) == ["a.html", "a.json", "a.md"]


def test_a_figure_that_is_not_finite_is_shown_and_saved(pretended, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(Pretended, "to_dict", lambda self: {"signal_to_error_db": float("nan")})
    files = ["--out", tmp_path / "a.json", "--html", tmp_path / "a.html"]
    assert cli.main(["bench", "t3", "--json", *map(str, files)]) == 0
    for text in (capsys.readouterr().out, (tmp_path / "a.json").read_text()):
        assert json.loads(text) == {"signal_to_error_db": "nan"}


@pytest.mark.parametrize("option", ["--out", "--markdown", "--html"])
def test_a_place_that_cannot_be_written_is_refused_before_measuring(option, monkeypatch, capsys, tmp_path):
    measured = []
    replace_t3(monkeypatch, measured.append)
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "a", tmp_path):
        assert cli.main(["bench", "t3", option, str(place)]) == 1
        assert str(place).removesuffix("/a") in capsys.readouterr().err
    assert measured == []
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_was_measured_is_shown_though_saving_fails_and_saved_though_showing_does(
    pretended, monkeypatch, capsys, tmp_path
):
    def full(*args):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(commands, "save", full)
        assert cli.main(["bench", "t3", "--out", str(tmp_path / "a.json")]) == 1
    shown = capsys.readouterr()
    assert "2.00x (1.50 to 2.50): gain" in shown.out
    assert "no space left" in shown.err
    monkeypatch.setattr(cli, "_show", full)
    assert cli.main(["bench", "t3", "--out", str(tmp_path / "a.json")]) == 1
    assert json.loads((tmp_path / "a.json").read_text()) == {"passed": True}


def test_without_matplotlib_a_page_is_refused_before_measuring(monkeypatch, capsys, tmp_path):
    replace_t3(monkeypatch, lambda settings: pytest.fail("measured nevertheless"))
    monkeypatch.setattr(plots.importlib.util, "find_spec", lambda name: None)
    assert cli.main(["bench", "t3", "--html", str(tmp_path / "a.html")]) == 1
    assert "pip install 'tts-compile[plots]'" in capsys.readouterr().err


def test_settings_come_from_the_command_line(monkeypatch, capsys):
    given = []

    def run(settings):
        given.append(settings)
        return Pretended(settings=settings)

    for settings in (t3.Settings, batch.Settings, startup.LoadSettings, voice.Settings):
        monkeypatch.setitem(commands.SUBJECTS, "t3", commands.Subject(settings, run, "", None))
        assert cli.main(["bench", "t3"]) == 0
        assert given.pop() == settings()
    monkeypatch.setitem(commands.SUBJECTS, "t3", commands.Subject(batch.Settings, run, "", lambda _: 60))
    monkeypatch.setattr(commands, "checkpoint", lambda *args: contextlib.nullcontext("anywhere"))
    monkeypatch.setitem(
        commands.SUBJECTS, "t3", commands.SUBJECTS["t3"]._replace(run=lambda source, settings: run(settings))
    )
    words = "--chars 9 4 --sizes 2 3 --no-stock --repeats 7 --device cuda --seed 5 --model anywhere"
    assert cli.main(["bench", "t3", *words.split()]) == 0
    assert given == [batch.Settings(chars=(9, 4), sizes=(2, 3), stock=False, repeats=7, device="cuda", seed=5)]


@pytest.mark.slow
def test_bench_compiles_from_cold_and_never_again(tmp_path):
    pytest.importorskip("chatterbox")
    done = run("bench", "t3", "--repeats", 1, "--tokens", 16, "--json", "--out", tmp_path / "result.json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == json.loads((tmp_path / "result.json").read_text())
    assert found["later_graphs"] == 0
    assert found["compile_seconds"] > 0
    assert found["report"]["components"]["t3"]["ran"] == "inductor"
