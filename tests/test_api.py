"""``compile_model`` and the handle: attach to one instance, speak through it, and restore it without a trace."""

from __future__ import annotations

import copy
import inspect
import io
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import tts_compile as tc
from conftest import EAGER
from speech import SHORT, Speech, random_states, seed_everything, speak, speak_stock
from tts_compile.components.seam import Seam, attach_all, detach_all

CONFIGS = {"eager": EAGER, "t3 alone": tc.CompileConfig.off().replace(t3=EAGER.t3), "off": tc.CompileConfig.off()}


def identities(*owners: Any) -> list[dict[str, int]]:
    """Returns the attributes of each owner, by identity."""
    return [{name: id(value) for name, value in vars(owner).items()} for owner in owners]


def instances(tts: Any) -> tuple[Any, ...]:
    return tts, tts.t3, tts.t3.tfmr, tts.s3gen, tts.s3gen.flow, tts.s3gen.mel2wav, tts.ve, tts.tokenizer


def shared(tts: Any) -> list[Any]:
    """Returns the classes and modules that an instance of the model shares with others."""
    classes = [cls for owner in instances(tts) for cls in type(owner).__mro__ if "chatterbox" in cls.__module__]
    modules = [sys.modules[cls.__module__] for cls in classes]
    return [*classes, *modules, sys.modules["chatterbox.models.t3.t3"]]


def test_only_instance_attributes_change(tts: Any, stock_speech: Callable[..., Speech]) -> None:
    expected = stock_speech(SHORT)
    own, common = identities(*instances(tts)), identities(*shared(tts))
    weights = {name: (p.data_ptr(), p._version) for name, p in tts.t3.named_parameters()}
    fast = tc.compile_model(tts, EAGER)
    assert identities(*instances(tts)) != own
    assert identities(*shared(tts)) == common
    assert speak(fast, SHORT) == expected
    fast.restore()
    assert identities(*instances(tts)) == own
    assert identities(*shared(tts)) == common
    assert {name: (p.data_ptr(), p._version) for name, p in tts.t3.named_parameters()} == weights


def test_restored_model_is_stock_bit_for_bit(
    tts: Any, stock_wave: Callable[..., tuple[Tensor, Any]], stock_speech: Callable[..., Speech]
) -> None:
    expected, states = stock_wave(SHORT, 1)
    fast = tc.compile_model(tts, EAGER)
    speak(fast, SHORT)
    fast.restore()
    seed_everything(1)
    wave = fast.generate(SHORT)  # the handle forwards to the model
    assert random_states() == states
    assert torch.equal(wave, expected)
    assert speak(tts, SHORT) == stock_speech(SHORT)
    assert fast.report().attached is False


def test_equal_configuration_gives_the_same_handle(tts: Any) -> None:
    fast = tc.compile_model(tts, EAGER)
    replaced = tts.t3.inference
    assert tc.compile_model(tts, tc.CompileConfig.from_mapping(EAGER.to_dict())) is fast
    assert tc.compile_model(fast, EAGER) is fast
    assert tts.t3.inference is replaced


def test_other_configuration_is_refused(tts: Any) -> None:
    fast = tc.compile_model(tts, EAGER)
    for target in (tts, fast):
        with pytest.raises(tc.ModelStateError, match=r"restore\(\)"):
            tc.compile_model(target, tc.CompileConfig.off())
    fast.restore()
    assert tc.compile_model(fast, tc.CompileConfig.off()).wrapped is tts


def test_restoring_twice_is_harmless(tts: Any) -> None:
    first = tc.compile_model(tts, EAGER)
    first.restore()
    first.restore()
    second = tc.compile_model(tts, EAGER)
    assert second is not first
    first.restore()  # does not take the second one's seams away
    assert "inference" in vars(tts.t3)
    second.restore()
    assert "inference" not in vars(tts.t3)


def test_context_manager(tts: Any) -> None:
    before = identities(*instances(tts))
    with tc.compile_model(tts, EAGER) as fast:
        assert isinstance(fast, tc.CompiledTTS)
        assert fast.report().attached is True
    assert identities(*instances(tts)) == before
    with pytest.raises(ZeroDivisionError), tc.compile_model(tts, EAGER):
        _ = 1 / 0
    assert identities(*instances(tts)) == before


operation = st.tuples(st.just("compile"), st.sampled_from(sorted(CONFIGS))) | st.tuples(
    st.just("restore"), st.integers(0, 5)
)


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(operation, max_size=8))
def test_any_sequence_of_compile_and_restore(tts: Any, operations: list[tuple[str, Any]]) -> None:
    before = identities(*instances(tts))
    handles: list[tc.CompiledTTS] = []
    current: tc.CompiledTTS | None = None
    try:
        for kind, choice in operations:
            if kind == "restore":
                if choice < len(handles):
                    handles[choice].restore()
                    current = None if handles[choice] is current else current
            elif current is None:
                current = tc.compile_model(tts, CONFIGS[choice])
                assert current not in handles
                handles.append(current)
            elif current.config == CONFIGS[choice]:
                assert tc.compile_model(tts, CONFIGS[choice]) is current
            else:
                with pytest.raises(tc.ModelStateError):
                    tc.compile_model(tts, CONFIGS[choice])
            attached = current is not None and current.config != CONFIGS["off"]
            assert ("inference" in vars(tts.t3)) is attached
            assert [handle.report().attached for handle in handles] == [handle is current for handle in handles]
    finally:
        if current is not None:
            current.restore()
    assert identities(*instances(tts)) == before


def test_kill_switch(tts: Any, stock_wave: Callable[..., tuple[Tensor, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    expected, states = stock_wave(SHORT, 1)
    monkeypatch.setenv("TTS_COMPILE", "0")
    fast = tc.compile_model(tts, tc.CompileConfig.exact())
    assert "inference" not in vars(tts.t3)
    assert {row.ran for row in fast.report().components.values()} == {"stock"}
    fast.warmup()
    seed_everything(1)
    assert torch.equal(fast.generate(SHORT), expected)
    assert random_states() == states
    assert {(row.ran, row.calls) for row in fast.report().components.values()} == {("stock", 0)}
    fast.restore()


def test_configuration_comes_from_the_environment(tts: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    path = tmp_path / "config.toml"
    tables = (f'[{name}]\nexecution = "eager"\n' for name in ("t3", "flow", "vocoder"))
    path.write_text("warmup_samples = 0\n" + "".join(tables), encoding="utf-8")
    monkeypatch.setenv("TTS_COMPILE_CONFIG", str(path))
    assert tc.compile_model(tts).config == EAGER


def test_method_replaced_by_somebody_else_is_not_thrown_away(tts: Any) -> None:
    fast = tc.compile_model(tts, EAGER)
    ours = tts.t3.inference

    def theirs(**kwargs: Any) -> None:
        """Another program's patch."""

    tts.t3.inference = theirs
    with pytest.raises(tc.ModelStateError, match=r"inference.*replaced"):
        fast.restore()
    assert tts.t3.inference is theirs
    tts.t3.inference = ours
    fast.restore()
    assert "inference" not in vars(tts.t3)


def test_earlier_patch_comes_back(tts: Any) -> None:
    def theirs(**kwargs: Any) -> Any:
        return type(tts.t3).inference(tts.t3, **kwargs)

    tts.t3.inference = theirs
    with tc.compile_model(tts, EAGER):
        assert tts.t3.inference is not theirs
    assert tts.t3.inference is theirs


def test_attributes_are_the_wrapped_models(eager: Any, tts: Any) -> None:
    assert eager.sr == tts.sr
    assert eager.t3 is tts.t3
    voice = type(tts.conds)(tts.conds.t3, tts.conds.gen)
    eager.conds = voice
    assert tts.conds is voice
    eager.mark = 1
    assert tts.mark == 1
    del eager.mark
    assert not hasattr(tts, "mark")
    with pytest.raises(AttributeError):
        _ = eager.no_such_thing
    assert {"conds", "prepare_conditionals", "restore"} <= set(dir(eager))
    assert "ChatterboxTTS" in repr(eager)


def test_prepare_conditionals_through_the_handle(eager: Any, tts: Any, tmp_path: Any) -> None:
    before = tts.conds
    eager.prepare_conditionals(tc.testing.make_reference_wav(tmp_path / "voice.wav", seconds=2))
    assert tts.conds is eager.conds is not before
    assert speak(eager, SHORT, max_new_tokens=5) == speak_stock(tts, SHORT, max_new_tokens=5)


def test_signatures_are_stocks(eager: Any, tts: Any) -> None:
    assert inspect.signature(eager.generate) == inspect.signature(tts.generate)
    stock = inspect.signature(type(tts.t3).inference.__get__(tts.t3))
    assert inspect.signature(tts.t3.inference) == stock
    assert eager.generate.__name__ == "generate"
    assert eager.generate.__doc__ == tts.generate.__doc__


def test_generate_takes_positions_and_names_as_stock(
    eager: Any, silent: Callable[[Any], list[tuple[int, ...]]]
) -> None:
    spoken = silent(eager)
    for args, kwargs in (((SHORT, 1.5, 0.1), {}), ((SHORT,), {"repetition_penalty": 1.5, "min_p": 0.1})):
        torch.manual_seed(0)
        eager.generate(*args, **kwargs)
    assert spoken[0] == spoken[1]
    with pytest.raises(TypeError):
        eager.generate(SHORT, speed=2)


def test_exaggeration_is_stocks(eager: Any, tts: Any, silent: Callable[[Any], list[tuple[int, ...]]]) -> None:
    spoken = silent(eager)
    torch.manual_seed(0)
    eager.generate(SHORT, exaggeration=0.9)
    assert float(tts.conds.t3.emotion_adv[0, 0, 0]) == pytest.approx(0.9)
    eager.restore()
    torch.manual_seed(0)
    tts.generate(SHORT, exaggeration=0.9)
    assert spoken[0] == spoken[1]


def test_warmup_leaves_voice_and_generators(
    eager: Any, tts: Any, silent: Callable[[Any], list[tuple[int, ...]]]
) -> None:
    spoken = silent(eager)
    voice = tts.conds.t3
    states = random_states()
    warm = eager.warmup(["One.", "Two."])
    assert (warm.texts, len(spoken)) == (2, 2)
    assert random_states() == states
    assert tts.conds.t3 is voice


def test_warmup_leaves_an_exaggerated_voice(
    eager: Any, tts: Any, silent: Callable[[Any], list[tuple[int, ...]]]
) -> None:
    silent(eager)
    eager.generate("Oh!", exaggeration=0.9)
    voice = tts.conds.t3
    eager.warmup(["One."])
    assert tts.conds.t3 is voice
    assert float(tts.conds.t3.emotion_adv[0, 0, 0]) == pytest.approx(0.9)


def test_two_models_do_not_know_each_other(fast: Any, tts: Any, stock_speech: Callable[..., Speech]) -> None:
    assert fast.wrapped is not tts
    assert "inference" in vars(fast.t3)
    assert "inference" not in vars(tts.t3)
    assert speak(tts, SHORT, 0) == stock_speech(SHORT, 0)


@pytest.mark.parametrize("thing", [None, object(), "model", torch.nn.Linear(2, 2)])
def test_unsupported_objects(thing: Any) -> None:
    with pytest.raises(tc.UnsupportedModelError, match=r"supported: .*ChatterboxTTS") as caught:
        tc.compile_model(thing)
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, tc.TTSCompileError)


def test_parts_and_classes_of_the_model_are_unsupported(tts: Any) -> None:
    for thing in (tts.t3, type(tts)):
        with pytest.raises(tc.UnsupportedModelError):
            tc.compile_model(thing)


def test_config_must_be_a_config(tts: Any) -> None:
    with pytest.raises(tc.ConfigError, match="dict"):
        tc.compile_model(tts, {"t3": "eager"})  # type: ignore[arg-type]


def test_model_in_training_mode_is_refused(tts: Any) -> None:
    before = identities(*instances(tts))
    tts.t3.train()
    with pytest.raises(tc.ModelStateError, match="training"):
        tc.compile_model(tts, EAGER)
    tts.t3.eval()
    assert identities(*instances(tts)) == before


def test_a_shallow_copy_is_refused(tts: Any) -> None:
    with tc.compile_model(tts, EAGER), pytest.raises(tc.ModelStateError, match="deepcopy"):
        tc.compile_model(copy.copy(tts), EAGER)


def test_a_handle_is_not_copied(eager: tc.CompiledTTS) -> None:
    with pytest.raises(tc.ModelStateError, match="cannot be copied"):
        copy.copy(eager)


def test_a_deep_copy_can_be_compiled(tts: Any) -> None:
    with tc.compile_model(tts, EAGER):
        copied = copy.deepcopy(tts)
    fast = tc.compile_model(copied, EAGER)
    assert speak(fast, SHORT) == speak_stock(tts, SHORT)
    report = fast.report()
    assert report.components["t3"].ran == "eager"
    assert [row.fallbacks for row in report.components.values()] == [()] * len(report.components)
    assert not any("left" in row.note for row in report.components.values())


def test_a_pickled_part_is_stock(tts: Any) -> None:
    with tc.compile_model(tts, EAGER):
        stored = io.BytesIO()
        torch.save(tts.s3gen.flow, stored)
    stored.seek(0)
    loaded = torch.load(stored, weights_only=False)
    assert loaded.inference.__func__ is type(loaded).inference
    assert loaded.inference.__self__ is loaded


def test_a_restore_that_fails_changes_nothing(tts: Any) -> None:
    fast = tc.compile_model(tts, EAGER)
    ours = tts.s3gen.mel2wav.inference
    before = identities(*instances(tts))
    tts.s3gen.mel2wav.inference = lambda **kwargs: ours(**kwargs)
    patched = identities(*instances(tts))
    for give_back in (fast.restore, lambda: fast.stock().__enter__()):
        with pytest.raises(tc.ModelStateError, match="replaced after"):
            give_back()
        assert identities(*instances(tts)) == patched != before
        assert fast.report().attached
    with pytest.raises(TypeError, match="speech_feat"):
        tts.s3gen.mel2wav.inference()  # the patch calls the library, which calls stock and not the patch again
    tts.s3gen.mel2wav.inference = ours
    fast.restore()
    assert "inference" not in vars(tts.s3gen.flow)


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("what", ["attach", "detach"])
def test_an_interrupt_leaves_what_can_be_restored(
    tts: Any, monkeypatch: pytest.MonkeyPatch, what: str, where: str
) -> None:
    before = identities(*instances(tts))
    inner = getattr(Seam, what)
    calls: list[Seam] = []

    def interrupted(self: Seam) -> None:
        calls.append(self)
        if len(calls) == 2:
            if where == "after":
                inner(self)
            raise KeyboardInterrupt
        inner(self)

    if what == "attach":
        with monkeypatch.context() as patch:
            patch.setattr(Seam, "attach", interrupted)
            with pytest.raises(KeyboardInterrupt):
                tc.compile_model(tts, EAGER)
        assert identities(*instances(tts)) == before
        return
    fast = tc.compile_model(tts, EAGER)
    with monkeypatch.context() as patch:
        patch.setattr(Seam, "detach", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fast.restore()
    fast.restore()
    assert identities(*instances(tts)) == before


@pytest.mark.parametrize("before", [False, True], ids=["attach", "detach"])
def test_all_parts_or_none(before: bool) -> None:
    class Part:
        def __init__(self, interrupted: bool = False) -> None:
            self.attached = before
            self._interrupted = interrupted

        def attach(self) -> None:
            self._become(True)

        def detach(self) -> None:
            self._become(False)

        def _become(self, attached: bool) -> None:
            self.attached = attached
            if self._interrupted:
                self._interrupted = False
                raise KeyboardInterrupt

    parts = [Part(), Part(interrupted=True), Part()]
    with pytest.raises(KeyboardInterrupt):
        (detach_all if before else attach_all)(parts)
    assert [part.attached for part in parts] == [before] * 3


def test_a_seam_that_was_interrupted_half_way(tts: Any) -> None:
    seam = Seam(tts.t3, "inference", lambda: "ours")
    seam.attach()
    del tts.t3.inference  # as an interrupt leaves it in the middle of detach
    seam.detach()
    seam.attach()
    seam.attach()
    assert tts.t3.inference() == "ours"
    seam.detach()
    assert "inference" not in vars(tts.t3)


def test_a_patch_made_while_stock_goes_on_being_called(tts: Any) -> None:
    fast = tc.compile_model(tts, EAGER)
    with fast.stock():
        tts.t3.inference = lambda **kwargs: "patched"
    assert tts.t3.inference() == "patched"
    assert "not chatterbox's own" in fast.report().components["t3"].fallbacks[0].error


@pytest.mark.parametrize("texts", ["Hello.", ["Hello."]])
def test_a_warm_up_checks_its_texts_first(tts: Any, texts: Any) -> None:
    tts.conds = None
    fast = tc.compile_model(tts, EAGER)
    with pytest.raises(tc.InputError, match="voice" if isinstance(texts, list) else "must be a list"):
        fast.warmup(texts)
    assert fast.report().components["t3"].calls == 0
