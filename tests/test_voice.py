"""The reference voice: equal to stock's bit for bit, cached, never shared, and kept when a new recording is bad."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tts_compile as tc
from speech import random_states, seed_everything
from tts_compile.components.voice import reference
from tts_compile.components.weight_watch import WeightWatch

soundfile = pytest.importorskip("soundfile")

AUTO = tc.ComponentPolicy()
VOICE = tc.CompileConfig.off().replace(warmup_samples=0, reference=AUTO, voice_encoder=AUTO)


@pytest.fixture
def voiced(tts: Any) -> Iterator[tc.CompiledTTS]:
    with tc.compile_model(tts, VOICE) as handle:
        yield handle


@pytest.fixture(scope="session")
def wavs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("voices")
    made = {
        "long": tc.testing.make_reference_wav(folder / "long.wav", seconds=11),
        "short": tc.testing.make_reference_wav(folder / "short.wav", seconds=0.5),
        "other rate": tc.testing.make_reference_wav(folder / "44100.wav", seconds=0.7, sample_rate=44_100),
        "stereo": folder / "stereo.wav",
        "shortest": folder / "shortest.wav",
    }
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, size=(20_000, 2)).astype(np.float32)
    soundfile.write(made["stereo"], noise, 32_000)
    soundfile.write(made["shortest"], noise[:1079, 0], 24_000)
    return made


def stock_conds(tts: Any, source: Any, **settings: Any) -> Any:
    """Returns the voice that the class's own method makes of a recording, with nothing attached."""
    assert "embeds_from_wavs" not in vars(tts.ve)
    voice = tts.conds
    try:
        type(tts).prepare_conditionals(tts, source, **settings)
        return tts.conds
    finally:
        tts.conds = voice


def parts(conds: Any) -> dict[str, Any]:
    return {**{f"t3.{k}": v for k, v in vars(conds.t3).items()}, **{f"gen.{k}": v for k, v in conds.gen.items()}}


def assert_identical(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, Tensor):
            assert torch.equal(found[name], value), name
            assert (found[name].dtype, found[name].stride()) == (value.dtype, value.stride()), name
            assert torch.isfinite(value).all(), name
        else:
            assert found[name] is value is None, name


def row(handle: Any, name: str = "reference") -> tc.ComponentReport:
    return handle.report().components[name]


@pytest.mark.parametrize("kind", ["long", "short", "other rate", "stereo", "shortest"])
def test_conditionals_are_stocks(tts: Any, wavs: dict[str, Path], kind: str) -> None:
    seed_everything(3)
    expected = parts(stock_conds(tts, wavs[kind], exaggeration=0.7))
    states = random_states()
    with tc.compile_model(tts, VOICE) as fast:
        for source in (wavs[kind], str(wavs[kind]), io.BytesIO(wavs[kind].read_bytes())):
            seed_everything(3)
            fast.prepare_conditionals(source, exaggeration=0.7)
            assert_identical(parts(fast.conds), expected)
            assert random_states() == states
        assert "1 of 3" in row(fast).note


def test_the_voice_reaches_generate(voiced: Any, wavs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voiced.t3, "inference", lambda **kwargs: torch.zeros(2, 5, dtype=torch.long))
    monkeypatch.setattr(voiced.s3gen, "inference", lambda **kwargs: (torch.zeros(1, 4800), None))
    voiced.generate("Hello.", audio_prompt_path=str(wavs["short"]), exaggeration=0.9)
    assert float(voiced.conds.t3.emotion_adv) == pytest.approx(0.9)
    assert row(voiced).calls == 1


def test_exaggeration_is_no_part_of_what_is_kept(voiced: Any, wavs: dict[str, Path]) -> None:
    for exaggeration in (0.5, 0.25, 1):
        voiced.prepare_conditionals(wavs["short"], exaggeration)
        assert float(voiced.conds.t3.emotion_adv) == exaggeration
        assert voiced.conds.t3.emotion_adv.shape == (1, 1, 1)
    assert "2 of 3" in row(voiced).note


def test_changing_a_voice_in_place_changes_no_other(voiced: Any, wavs: dict[str, Path]) -> None:
    voiced.prepare_conditionals(wavs["short"])
    expected = {name: value.clone() for name, value in parts(voiced.conds).items() if value is not None}
    for _ in range(2):  # the tensors that were computed, and those from the cache
        for value in parts(voiced.conds).values():
            if value is not None:
                value.zero_()
        voiced.conds.gen.clear()
        voiced.prepare_conditionals(wavs["short"])
        found = {name: value for name, value in parts(voiced.conds).items() if value is not None}
        assert_identical(found, expected)


def test_a_file_written_anew_is_read_anew(voiced: Any, wavs: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "voice.wav"
    path.write_bytes(wavs["short"].read_bytes())
    voiced.prepare_conditionals(path)
    first = voiced.conds.t3.speaker_emb
    path.write_bytes(wavs["shortest"].read_bytes())
    voiced.prepare_conditionals(path)
    assert not torch.equal(voiced.conds.t3.speaker_emb, first)
    assert "0 of 2" in row(voiced).note


def _written(weight: Tensor) -> None:
    with torch.no_grad():
        weight.mul_(1.5)


def _exchanged(weight: Tensor) -> None:
    weight.data = weight.data * 1.5


def _cast(weight: Tensor) -> None:
    weight.data = (weight.data * 1.5).half().float()  # the new tensor may get the address of the first


@pytest.mark.parametrize("change", [_written, _exchanged, _cast])
@pytest.mark.parametrize("module", ["tokenizer", "speaker_encoder", "ve"])
def test_changed_weights_are_noticed(tts: Any, wavs: dict[str, Path], module: str, change: Any) -> None:
    weight = {
        "tokenizer": tts.s3gen.tokenizer.encoder.conv1.weight,
        "speaker_encoder": tts.s3gen.speaker_encoder.head.conv1.weight,
        "ve": tts.ve.proj.weight,
    }[module]
    before, kept = weight.detach().clone(), weight.data
    with tc.compile_model(tts, VOICE) as fast:
        try:
            fast.prepare_conditionals(wavs["shortest"])
            change(weight)
            fast.prepare_conditionals(wavs["shortest"])
            assert "0 of 2" in row(fast).note
        finally:
            weight.data = kept
            with torch.no_grad():
                weight.copy_(before)


def test_an_exchanged_module_is_noticed(voiced: Any, wavs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    voiced.prepare_conditionals(wavs["shortest"])
    monkeypatch.setattr(voiced.wrapped, "ve", type(voiced.ve)().eval())
    voiced.prepare_conditionals(wavs["shortest"])
    assert "0 of 2" in row(voiced).note


def test_other_settings_of_torch_are_another_question(voiced: Any, wavs: dict[str, Path]) -> None:
    voiced.prepare_conditionals(wavs["shortest"])
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        voiced.prepare_conditionals(wavs["shortest"])
    finally:
        torch.set_float32_matmul_precision(before)
    assert "0 of 2" in row(voiced).note


def test_a_hook_sees_every_reference(voiced: Any, wavs: dict[str, Path]) -> None:
    seen: list[int] = []
    handle = voiced.s3gen.speaker_encoder.head.register_forward_hook(lambda *_: seen.append(1))
    try:
        voiced.prepare_conditionals(wavs["shortest"])
        voiced.prepare_conditionals(wavs["shortest"])
    finally:
        handle.remove()
    assert len(seen) == 2
    assert "hook" in row(voiced).note


def test_a_method_replaced_afterwards_is_called_every_time(
    voiced: Any, wavs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    quantize = voiced.s3gen.tokenizer.quantize
    voiced.prepare_conditionals(wavs["shortest"])
    monkeypatch.setattr(voiced.s3gen.tokenizer, "quantize", lambda *args: seen.append(1) or quantize(*args))
    voiced.prepare_conditionals(wavs["shortest"])
    voiced.prepare_conditionals(wavs["shortest"])
    assert len(seen) == 4


def test_a_method_replaced_before_stays_in_charge(tts: Any, wavs: dict[str, Path]) -> None:
    embedded: list[int] = []
    stock = tts.s3gen.embed_ref
    tts.s3gen.embed_ref = lambda *args, **kwargs: embedded.append(1) or stock(*args, **kwargs)
    with tc.compile_model(tts, VOICE) as fast:
        fast.prepare_conditionals(wavs["shortest"])
        fast.prepare_conditionals(wavs["shortest"])
        assert len(embedded) == 2
        assert row(fast).ran == "stock"
        assert "embed_ref" in row(fast).fallbacks[0].error


def test_training_mode_is_never_answered_from_the_cache(voiced: Any, wavs: dict[str, Path]) -> None:
    voiced.prepare_conditionals(wavs["short"])
    voiced.s3gen.speaker_encoder.head.train()
    buffers = {name: b.clone() for name, b in voiced.s3gen.speaker_encoder.named_buffers()}
    try:
        voiced.prepare_conditionals(wavs["short"])
    finally:
        voiced.s3gen.speaker_encoder.eval()
        for name, buffer in voiced.s3gen.speaker_encoder.named_buffers():
            buffer.copy_(buffers[name])
    assert "0 of 2" in row(voiced).note


def test_inference_mode(voiced: Any, wavs: dict[str, Path]) -> None:
    with torch.inference_mode():
        voiced.prepare_conditionals(wavs["shortest"])
    voiced.prepare_conditionals(wavs["shortest"])
    voiced.conds.gen["embedding"].add_(1)  # no inference tensor
    assert "1 of 2" in row(voiced).note


def test_waves_from_a_generator(voiced: Any) -> None:
    wave = np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
    known = type(voiced.ve).embeds_from_wavs(voiced.ve, [wave], 16_000)
    assert np.allclose(voiced.ve.embeds_from_wavs((w for w in [wave]), 16_000), known, atol=1e-5)


def test_autocast_is_another_question(voiced: Any) -> None:
    plain = voiced.s3gen.embed_ref(LOUD, 24_000)["embedding"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = voiced.s3gen.embed_ref(LOUD, 24_000)["embedding"]
    assert not torch.equal(plain, rounded)
    assert torch.equal(voiced.s3gen.embed_ref(LOUD, 24_000)["embedding"], plain)
    assert "1 of 3" in row(voiced).note


def test_weights_made_in_inference_mode_are_not_trusted() -> None:
    with torch.inference_mode():
        module = torch.nn.Linear(2, 2).eval()
    unchanged, reason = WeightWatch(lambda: [module]).look()
    assert not unchanged
    assert "inference" in str(reason)


def test_embed_ref(tts: Any) -> None:
    wave = np.random.default_rng(1).uniform(-0.3, 0.3, size=9_600).astype(np.float32)
    cases: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((wave, 24_000), {}),
        ((wave, 24_000, "cpu"), {"ref_fade_out": False}),
        ((torch.from_numpy(wave), 24_000), {"device": "cpu"}),
        ((wave[None], 16_000), {}),
        ((np.stack([wave, wave[::-1]]), 24_000), {}),
        ((wave.astype(np.float64), 48_000), {}),
    ]
    expected = [tts.s3gen.embed_ref(*args, **kwargs) for args, kwargs in cases]
    with tc.compile_model(tts, VOICE) as fast:
        for _ in range(2):
            for (args, kwargs), stock in zip(cases, expected):
                assert_identical(fast.s3gen.embed_ref(*args, **kwargs), stock)
        assert f"{len(cases)} of {2 * len(cases)}" in row(fast).note
        fast.s3gen.embed_ref(wave + 1e-3, 24_000)
        assert f"{len(cases)} of {2 * len(cases) + 1}" in row(fast).note


def test_gradients_through_a_reference(tts: Any) -> None:
    wave = torch.rand(1, 4_800).requires_grad_()
    with tc.compile_model(tts, VOICE) as fast:
        fast.s3gen.embed_ref(wave, 24_000)["embedding"].sum().backward()
        assert wave.grad is not None
        assert row(fast).note.startswith("calls left to stock: 1")


QUIET = np.zeros(24_000, dtype=np.float32)
LOUD = np.random.default_rng(2).uniform(-0.3, 0.3, size=24_000).astype(np.float32)
BAD_WAVES = {
    "too short": (LOUD[:1078], 24_000, r"0\.0449 s.*0\.0450 s"),
    "too short at 16 kHz": (LOUD[:719], 16_000, r"0\.0449 s.*0\.0450 s"),
    "no samples": (LOUD[:0], 24_000, r"0\.0000 s"),
    "channels last": (LOUD.reshape(-1, 2), 24_000, "channels come first"),
    "three dimensions": (LOUD.reshape(1, 2, -1), 24_000, "shape"),
    "silent": (QUIET, 24_000, "silent"),
    "one silent row": (np.stack([LOUD, QUIET]), 24_000, "silent"),
    "nan": (np.where(np.arange(24_000) == 5, math.nan, LOUD), 24_000, "not finite"),
    "infinite": (torch.full((24_000,), math.inf), 24_000, "not finite"),
    "list": (LOUD.tolist(), 24_000, "array"),
    "rate 0": (LOUD, 0, "rate"),
    "no rate": (LOUD, None, "rate"),
}


@pytest.mark.parametrize("case", BAD_WAVES)
def test_bad_wave(voiced: Any, case: str) -> None:
    wave, rate, reason = BAD_WAVES[case]
    with pytest.raises(tc.InputError, match=reason):
        voiced.s3gen.embed_ref(wave, rate)
    assert row(voiced).calls == 0


def _files(folder: Path) -> dict[str, tuple[Any, str]]:
    waves = {
        "short.wav": (LOUD[:1078], r"0\.0449 s.*0\.0450 s"),
        "silent.wav": (QUIET, "silent"),
        "late.wav": (np.concatenate([np.tile(QUIET, 10), LOUD]), "silent"),
        "infinite.wav": (np.where(np.arange(24_000) == 9, math.inf, LOUD), "not finite"),
        "nothing.wav": (LOUD[:0], r"0\.0000 s"),
    }
    for name, (wave, _) in waves.items():
        soundfile.write(folder / name, wave, 24_000, subtype="FLOAT")
    (folder / "empty.wav").touch()
    others = {"missing.wav": "does not exist", "empty.wav": "empty", "": "folder"}
    return {
        name: (folder / name, reason) for name, reason in (*[(n, r) for n, (_, r) in waves.items()], *others.items())
    }


def test_bad_file_leaves_the_voice_as_it_is(voiced: Any, tmp_path: Path) -> None:
    voice, part, before = voiced.conds, voiced.conds.t3, parts(voiced.conds)
    for path, reason in _files(tmp_path).values():
        for prepare in (voiced.prepare_conditionals, lambda p: voiced.generate("Hello.", audio_prompt_path=p)):
            with pytest.raises(tc.InputError, match=reason) as caught:
                prepare(path)
            assert str(path) in str(caught.value)
    for exaggeration in (math.nan, math.inf, None):
        with pytest.raises(tc.InputError, match="exaggeration"):
            voiced.prepare_conditionals("missing.wav", exaggeration)
    assert voiced.conds is voice
    assert voiced.conds.t3 is part
    assert all(value is before[name] for name, value in parts(voiced.conds).items())


def test_voice_encoder(tts: Any) -> None:
    waves = [LOUD, LOUD[:5_000] * np.linspace(0, 1, 5_000, dtype=np.float32)]
    cases: list[dict[str, Any]] = [{}, {"as_spk": True}, {"trim_top_db": None}, {"rate": None, "overlap": 0.25}]
    expected = [tts.ve.embeds_from_wavs(waves, 16_000, **case) for case in cases]
    with tc.compile_model(tts, VOICE) as fast:
        for case, stock in zip(cases, expected):
            found = fast.ve.embeds_from_wavs(waves, sample_rate=16_000, **case)
            assert found.dtype == stock.dtype
            assert np.array_equal(found, stock)
        encoder = row(fast, "voice_encoder")
        assert (encoder.ran, encoder.calls, encoder.compiled_calls) == ("eager", 4, 0)
        assert "LSTM" in encoder.note
        for bad in (LOUD[:0], LOUD * math.nan):
            with pytest.raises(tc.InputError):
                fast.ve.embeds_from_wavs([bad], 16_000)
        with pytest.raises(ValueError, match="float64"):  # stock's
            fast.ve.embeds_from_wavs([LOUD.astype(np.float64)], 16_000)
        assert "left to stock: 1" in row(fast, "voice_encoder").note


@pytest.mark.parametrize("execution", ["inductor", "cuda_graph"])
def test_a_wish_to_compile_is_answered_with_a_reason(tts: Any, execution: str) -> None:
    policy = tc.ComponentPolicy(execution=execution)
    with tc.compile_model(tts, VOICE.replace(reference=policy, voice_encoder=policy)) as fast:
        for name, reason in (("voice_encoder", "LSTM"), ("reference", "once")):
            assert row(fast, name).asked == execution
            (event,) = row(fast, name).fallbacks
            assert reason in event.error


def test_stock_is_left_alone(tts: Any) -> None:
    with tc.compile_model(tts, tc.CompileConfig.off()):
        assert "prepare_conditionals" not in vars(tts)
        assert "embed_ref" not in vars(tts.s3gen)
        assert "embeds_from_wavs" not in vars(tts.ve)


def test_restored(tts: Any, wavs: dict[str, Path]) -> None:
    fast = tc.compile_model(tts, VOICE)
    fast.prepare_conditionals(wavs["shortest"])
    fast.restore()
    for owner, name in ((tts, "prepare_conditionals"), (tts.s3gen, "embed_ref"), (tts.ve, "embeds_from_wavs")):
        assert name not in vars(owner)
    assert_identical(parts(stock_conds(tts, wavs["shortest"])), parts(tts.conds))


def test_restoring_can_be_tried_again(tts: Any) -> None:
    fast = tc.compile_model(tts, VOICE)
    ours = tts.prepare_conditionals
    tts.prepare_conditionals = print
    with pytest.raises(tc.ModelStateError, match="prepare_conditionals"):
        fast.restore()
    tts.prepare_conditionals = ours
    fast.restore()
    assert "prepare_conditionals" not in vars(tts)


def test_warmup_leaves_no_trace(voiced: Any) -> None:
    voice, states = voiced.conds, random_states()
    voiced.warmup()
    assert voiced.conds is voice
    assert random_states() == states
    assert {row(voiced, name).calls for name in ("reference", "voice_encoder", "watermark")} == {0}


def test_voice_conversion(tts: Any, wavs: dict[str, Path]) -> None:
    from chatterbox.vc import ChatterboxVC

    conversion = ChatterboxVC(tts.s3gen, "cpu")
    conversion.set_target_voice(wavs["other rate"])
    expected = conversion.ref_dict
    with tc.compile_model(conversion, VOICE) as fast:
        for _ in range(2):
            conversion.set_target_voice(wavs["other rate"])
            assert_identical(conversion.ref_dict, expected)
        voice = conversion.ref_dict
        with pytest.raises(tc.InputError, match="does not exist"):
            conversion.set_target_voice("missing.wav")
        assert conversion.ref_dict is voice
        assert "1 of 2" in row(fast).note
    assert "set_target_voice" not in vars(conversion)
    assert "embed_ref" not in vars(tts.s3gen)


def test_the_voices_that_were_used_last_are_kept(voiced: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "_KEPT", 2)
    first, second, third = (LOUD + number * 1e-3 for number in range(3))
    for wave in (first, second, first, third, first):
        voiced.s3gen.embed_ref(wave, 24_000)
    assert "2 of 5 references" in row(voiced).note
    voiced.s3gen.embed_ref(second, 24_000)
    assert "2 of 6 references" in row(voiced).note
