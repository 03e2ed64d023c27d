"""What ``fast.timings`` says after calls: the tree of stages, and what is kept apart from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tts_compile as tc
from conftest import components
from pretend import PretendRecorder
from tts_compile import handle as handle_module
from tts_compile.execution import CompileOptions, Region
from tts_compile.execution.cuda_graph import GraphCache, Replays
from tts_compile.execution.process_lock import ProcessLock
from tts_compile.timing.blocks import PHASES, Timings, timed

pytest.importorskip("chatterbox")

CPU = torch.device("cpu")
STAGES = {
    "t3": ("t3.prompt", "t3.prefill", "t3.decode"),
    "flow": ("flow.encoder", "flow.solver"),
    "vocoder": ("vocoder.pitch", "vocoder.source", "vocoder.network", "vocoder.istft"),
    "watermark": (),
}
TREE = {path: 1 for name, parts in STAGES.items() for path in (name, *(f"{name}/{part}" for part in parts))}


def counts(timings: Timings, phase: str = "steady") -> dict[str, int]:
    return {"/".join(row.path): row.count for row in timings.rows(phase)}


def below(root: str) -> dict[str, int]:
    return {root: 1, **{f"{root}/{path}": count for path, count in TREE.items()}}


def test_an_utterance_is_broken_down(eager: tc.CompiledTTS) -> None:
    wave = eager.generate("Hello.")
    assert counts(eager.timings) == below("generate")
    assert list(counts(eager.timings)) == list(below("generate"))
    generate, *stages = eager.timings.rows()
    assert generate.audio_seconds == wave.shape[1] / eager.sr
    assert generate.real_time_factor == generate.total / generate.audio_seconds
    assert sum(row.total for row in stages if len(row.path) == 2) <= generate.total
    assert [eager.timings.rows(phase) for phase in PHASES[1:]] == [[], [], []]


def test_without_the_handle_components_are_roots_and_stock_is_not_timed(
    eager: tc.CompiledTTS, silent: Callable[[Any], Any]
) -> None:
    silent(eager.wrapped)
    eager.wrapped.generate("Hello.")
    before = counts(eager.timings)
    assert before == {path: count for path, count in TREE.items() if path.startswith(("t3", "watermark"))}
    with eager.stock():
        eager.generate("Hello.")
    eager.restore()
    eager.warmup()
    assert counts(eager.timings) == before
    assert not eager.timings.rows("warm-up")


def test_warming_up_is_kept_apart(eager: tc.CompiledTTS, silent: Callable[[Any], Any]) -> None:
    silent(eager.wrapped)
    eager.warmup(["Hello."])
    assert [eager.timings.rows(phase) for phase in ("steady", "compile", "failed")] == [[], [], []]
    found = counts(eager.timings, "warm-up")
    assert {f"warmup/{name}": 1 for name in tc.config.COMPONENTS}.items() <= found.items()
    assert {"warmup", "warmup/vocoder/vocoder.pitch", "warmup/generate/t3/t3.decode"} <= found.keys()


def test_a_call_that_fails_is_kept_apart(eager: tc.CompiledTTS, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise tc.InputError("no")

    monkeypatch.setattr(eager.wrapped.s3gen, "inference", fail)
    with pytest.raises(tc.InputError):
        eager.generate("Hello.")
    monkeypatch.setattr(handle_module, "measure", fail)
    with pytest.raises(tc.InputError):
        eager.validate()
    assert counts(eager.timings, "failed") == {"generate": 1, "validate": 1}
    assert counts(eager.timings)["generate/t3"] == 1


def test_what_is_left_to_stock_is_timed_too(eager: tc.CompiledTTS, monkeypatch: pytest.MonkeyPatch) -> None:
    vocoder = eager.wrapped.s3gen.mel2wav
    monkeypatch.setattr(components(eager)["vocoder"], "left_to_stock", lambda: "for a test")
    vocoder.inference(torch.zeros(1, 80, 8))
    assert counts(eager.timings) == {"vocoder": 1}


def test_a_reference_holds_the_voice_encoder(eager: tc.CompiledTTS, tmp_path: Path) -> None:
    eager.wrapped.prepare_conditionals(tc.testing.make_reference_wav(tmp_path / "voice.wav", seconds=1))
    assert counts(eager.timings) == {"reference": 1, "reference/voice_encoder": 1}


def test_a_batch_is_broken_down(eager: tc.CompiledTTS) -> None:
    waves = eager.generate_batch(["Hello.", "Good morning."], seeds=[1, 2])
    found = counts(eager.timings)
    assert {path.removeprefix("generate_batch/") for path in found} - {"generate_batch"} == TREE.keys() - {
        "t3/t3.decode"
    }
    assert found["generate_batch"] == 1
    assert [found[f"generate_batch/{name}"] for name in ("flow", "vocoder", "watermark")] == [2, 2, 2]
    assert found["generate_batch/t3"] <= 3  # the first prompt, and an end for each utterance
    assert eager.timings.rows()[0].audio_seconds == sum(wave.shape[1] for wave in waves if wave is not None) / eager.sr
    events = eager.timings.chrome_trace()["traceEvents"]
    assert len({event["tid"] for event in events if event["name"] in ("flow", "watermark")}) == 2


def test_compiling_is_kept_apart(fresh_dynamo: None) -> None:
    fallback = tc.FallbackManager("part", ["inductor", "eager"])
    region, timings = Region("double", lambda x: 2 * x, fallback, CPU, CompileOptions("eager")), Timings()
    for _ in range(3):
        with timed("generate", timings):
            region(torch.ones(2))
    assert counts(timings, "compile") == {"generate": 1, "generate/compile double": 1}
    assert counts(timings) == {"generate": 2}
    generate, double = timings.rows("compile")
    assert 0 < double.total < generate.total


def test_capturing_is_kept_apart(recorder: PretendRecorder) -> None:
    replays, timings = Replays(GraphCache(recorder, ProcessLock()), CPU), Timings()
    for _ in range(3):
        with timed("generate", timings):
            replays(("flow", 1), lambda x: 2 * x, (torch.ones(2),))
    assert counts(timings, "compile") == {"generate": 1, "generate/capture flow": 1}
    assert counts(timings) == {"generate": 2}


def test_captured_functions_hold_no_blocks(
    tts: Any, recorder: PretendRecorder, monkeypatch: pytest.MonkeyPatch, silent: Callable[[Any], Any]
) -> None:
    """A replay would not take their time, and what is captured must not depend on whether somebody times it."""
    silent(tts)
    unfused = tc.ComponentPolicy(fuse=False)
    fast = tc.compile_model(tts, tc.CompileConfig.off().replace(t3=unfused, flow=unfused))
    record, made = recorder.record, []

    def watched(function: Callable[[], Any], undo: Callable[[], None]) -> Any:
        def called() -> Any:
            before = str(fast.timings)
            result = function()
            made.append(str(fast.timings) == before)
            return result

        return record(called, undo)

    monkeypatch.setattr(recorder, "record", watched)
    fast.generate("Hello.")
    voice = {name: value for name, value in tts.conds.gen.items() if torch.is_tensor(value)}
    tts.s3gen.flow.inference(
        torch.zeros(1, 8, dtype=torch.long),
        torch.tensor([8]),
        **voice,
        prompt_feat_len=None,
        finalize=True,
        n_timesteps=1,
    )
    found = counts(fast.timings, "compile")
    assert found.items() >= {"generate/t3/t3.decode/capture t3": 1, "flow/capture flow": 1}.items()
    assert made
    assert all(made)
