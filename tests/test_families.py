"""The family seam: a speech model of another project, in a short declaration, behaves like Chatterbox's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tts_compile as tc
from speech import random_states, seed_everything
from toy import TOY, ToyTTS
from tts_compile.families import _registered, family_named

TEXTS = ["Hello.", "A somewhat longer text, with a comma.", "Third one!", "And yet another text to speak."]


@pytest.fixture
def registered() -> Iterator[None]:
    before = dict(_registered)
    tc.register_family(TOY)
    yield
    _registered.clear()
    _registered.update(before)


@pytest.fixture
def toy(registered: None) -> Any:
    return ToyTTS()


def speak(tts: Any, text: str, seed: int, **settings: Any) -> tuple[bytes, Any]:
    seed_everything(seed)
    return tts.generate(text, **settings).numpy().tobytes(), random_states()


def test_the_declaration_is_at_most_40_lines() -> None:
    source = Path(__file__).with_name("toy.py").read_text()
    declaration = source.split("# declaration\n")[1].split("# end of the declaration\n")[0]
    assert len([line for line in declaration.splitlines() if line.strip()]) <= 40


@pytest.mark.parametrize("execution", ["eager", "auto"])
def test_a_model_of_another_project_is_compiled_exact_batched_reported_and_restored(
    toy: Any, execution: str, fresh_dynamo: None
) -> None:
    cases = [
        (text, seed, settings)
        for seed, text in enumerate(TEXTS)
        for settings in ({}, {"temperature": 0.6, "penalty": 1.5})
    ]
    stock = [speak(toy, text, seed, **settings) for text, seed, settings in cases]
    assert len({wave for wave, _ in stock}) == len(cases)
    sample = toy.lm.sample
    config = tc.CompileConfig(t3=tc.ComponentPolicy(execution=execution))
    with tc.compile_model(toy, config) as fast:
        fast.warmup()
        assert [speak(fast, text, seed, **settings) for text, seed, settings in cases] == stock
        for size in (1, 3):
            together = fast.generate_batch(TEXTS, seeds=range(len(TEXTS)), max_batch=size)
            expected = [speak(fast, text, seed)[0] for seed, text in enumerate(TEXTS)]
            assert [wave.numpy().tobytes() for wave in together] == expected
        row = fast.report().components["t3"]
        assert row.ran == ("inductor" if execution == "auto" else "eager")
        assert row.calls > 100
        assert row.compiled_calls == (row.calls if execution == "auto" else 0)
        assert row.recompiles_after_warmup == 0
        assert row.fallbacks == ()
        assert {name for name, other in fast.report().components.items() if other.ran != "stock"} == {"t3"}
        assert fast.validate(TEXTS[:1], transcribe=False).passed
        assert "sample" in vars(toy.lm)
    assert "sample" not in vars(toy.lm)
    assert toy.lm.sample == sample
    assert [speak(toy, text, seed, **settings) for text, seed, settings in cases] == stock


def test_what_a_family_checks_is_refused_before_any_work(toy: Any) -> None:
    with tc.compile_model(toy, tc.CompileConfig(t3=tc.ComponentPolicy(execution="eager"))) as fast:
        with pytest.raises(tc.InputError, match="penalty must be above 0"):
            fast.generate("Hello.", penalty=0)
        with pytest.raises(tc.InputError, match="temperature must be finite"):
            fast.generate_batch(["Hello."], temperature=float("inf"))


def test_a_class_without_a_family_is_refused_by_name() -> None:
    with pytest.raises(
        tc.UnsupportedModelError, match=r"cannot compile toy\.ToyTTS; supported: chatterbox\.tts\.Chatter"
    ):
        tc.compile_model(ToyTTS())


def test_registration(registered: None) -> None:
    assert [family.name for family in tc.families()][-1] == "toy"
    tc.register_family(dataclasses.replace(TOY, subject="text"))  # the same name replaces the declaration
    assert len([family for family in tc.families() if family.name == "toy"]) == 1
    with pytest.raises(tc.ConfigError, match="belongs to the family 'toy' already"):
        tc.register_family(dataclasses.replace(TOY, name="other"))
    with pytest.raises(tc.ConfigError, match="must be a Family, got str"):
        tc.register_family("toy")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["multilingual", "turbo"])
def test_a_family_that_cannot_be_compiled_yet_says_why(name: str) -> None:
    family = family_named(name)
    tts = object.__new__(family.load_class())
    with pytest.raises(tc.UnsupportedModelError, match=f"{family.class_name}: {family.unsupported}; supported: "):
        tc.compile_model(tts)


def test_a_transformer_that_attends_to_a_window_is_left_to_stock(toy: Any) -> None:
    stock = speak(toy, TEXTS[1], 3)
    toy.lm.tfmr.config.sliding_window = 4
    with tc.compile_model(toy, tc.CompileConfig(t3=tc.ComponentPolicy(execution="eager"))) as fast:
        assert speak(fast, TEXTS[1], 3) == stock
        row = fast.report().components["t3"]
    assert row.ran == "stock"
    assert "attends to a window" in row.fallbacks[0].error
