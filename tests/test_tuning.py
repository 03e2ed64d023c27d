"""A choice by measuring: what is kept, what it costs, when it is measured again; with a fake clock throughout."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import tts_compile as tc
from conftest import EAGER
from tts_compile.components.seam import Seam
from tts_compile.measuring.stats import ratio_of_medians
from tts_compile.parity import ComponentParity
from tts_compile.timing import blocks as timing
from tts_compile.tuning import Trial, Tuning, measure, store, tune
from tts_compile.tuning.measure import candidates
from tts_compile.tuning.trial import STOCK, best_of

CPU, GPU = torch.device("cpu"), torch.device("cuda")
AUTO = tc.ComponentPolicy()


def trial(way: str, seconds: Any, component: str = "t3", refused: str = "") -> Trial:
    return Trial(component, way, AUTO, 1, tuple(seconds), 0.0, refused, None)


def planted(seed: int, speed: float, component: str = "t3") -> str:
    """What is chosen when ours is so many times as fast as stock, with 3% of noise."""
    noise = np.random.default_rng(seed).normal(1.0, 0.03, size=(2, 5))
    return best_of([trial(STOCK, noise[0], component), trial("inductor", noise[1] / speed, component)]).way


@pytest.mark.parametrize("component", ["t3", "watermark"])
def test_only_wins_beyond_noise_are_kept(component: str) -> None:
    def chosen(speed: float) -> list[str]:
        return [planted(seed, speed, component) for seed in range(100)]

    assert chosen(1.2).count("inductor") >= 95
    assert chosen(1 / 1.2).count(STOCK) >= 95
    # what compiles nothing costs nothing, and spares stock's first call its imports
    assert chosen(1.0).count(STOCK if component == "t3" else "inductor") >= 95


def test_the_simpler_one_of_two_that_are_equally_fast() -> None:
    steady = [1.0, 1.01, 1.0, 0.99, 1.0]
    trials = [trial(STOCK, [3 * s for s in steady]), trial("eager", [2 * s for s in steady])]
    assert best_of([*trials, trial("inductor", [2.01 * s for s in steady])]).way == "eager"
    assert best_of([*trials, trial("inductor", steady)]).way == "inductor"
    assert best_of([*trials, trial("inductor", steady, refused="other tokens")]).way == "eager"
    assert best_of([*trials, trial("inductor", [])]).way == "eager"


def test_when_compiling_pays() -> None:
    stock, ours = [2.0] * 5, [1.0] * 5
    found = Trial("t3", "inductor", AUTO, 2, tuple(ours), 10.0, "", ratio_of_medians(stock, ours))
    assert found.pays_after == pytest.approx(20.0)  # half a second saved for each of two calls
    equal = dataclasses.replace(found, gain=ratio_of_medians([1.0, 0.9, 1.1, 1.0, 1.0], [1.0, 1.0, 0.9, 1.0, 1.1]))
    assert equal.pays_after is None
    assert dataclasses.replace(found, gain=None).pays_after is None


def test_candidates() -> None:
    assert list(candidates(AUTO, "t3", CPU)) == ["eager", "inductor", "inductor, draft tokens"]
    assert candidates(AUTO, "t3", CPU)["inductor"].draft_tokens == 0
    fixed = tc.ComponentPolicy(draft_tokens=2, backend="eager")
    assert list(candidates(fixed, "t3", CPU)) == ["eager", "inductor"]
    assert candidates(fixed, "t3", CPU)["inductor"] == dataclasses.replace(fixed, execution="inductor")
    assert list(candidates(AUTO, "flow", GPU)) == ["eager", "inductor", "cuda_graph", "cuda_graph, fused"]
    assert list(candidates(tc.ComponentPolicy(fuse=False), "t3", GPU)) == ["eager", "inductor", "cuda_graph"]
    assert list(candidates(AUTO, "vocoder", GPU)) == ["eager", "inductor"]
    assert list(candidates(AUTO, "watermark", GPU)) == ["eager"]


class Pretended:
    """A component that does nothing, and says what it was asked for."""

    dtype = "model"

    def __init__(self, policy: tc.ComponentPolicy, owner: Any) -> None:
        self.asked = policy.execution
        self.seams = [Seam(owner, "inference", print)]
        self.fallback = tc.FallbackManager("t3", [self.asked])
        assert policy.dtype == "model"

    def release(self) -> None:
        self.asked = "released"


class Laboratory:
    """Calls take planted seconds, and T3 gives what is planted; the only component that there is."""

    def __init__(self, tts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.seconds = {STOCK: 3.0, "eager": 2.0, "inductor": 1.0}
        self.compiling = 5.0
        self.failing: set[str] = set()
        self.ran = ""
        self.compared: list[str] = []
        noise = np.random.default_rng(0)

        def take(way: str) -> None:
            self.now += self.seconds[way] * noise.normal(1, 0.01)

        def compare(component: Pretended, calls: Any, thresholds: Any) -> ComponentParity:
            self.compared.append(component.asked)
            if component.asked in self.failing:
                raise tc.CompilationError("no compiler")
            if f"{component.asked} falls" in self.failing:
                component.fallback.record("memory", "too little", "no guessing ahead")
            self.now += self.compiling
            take(component.asked)
            bad = ("12.3 dB of signal to error",) if f"{component.asked} differs" in self.failing else ()
            return ComponentParity(self.ran or component.asked, 1, 0, (), (), True, bad)

        @contextlib.contextmanager
        def recorded(seams: Any, device: Any, model: Any) -> Iterator[list[Any]]:
            yield [SimpleNamespace(component="t3")]

        tts.generate = tts.prepare_conditionals = lambda _: None
        monkeypatch.setattr(timing, "read_clock", lambda: self.now)
        monkeypatch.setattr(measure, "recorded", recorded)
        monkeypatch.setattr(measure, "Assembly", lambda tts, config: {"t3": Pretended(config.t3, tts.t3)})
        monkeypatch.setattr(measure, "compare", compare)
        monkeypatch.setattr(measure, "_stock", lambda calls: take(STOCK))

        def ours(component: Pretended, calls: Any) -> None:
            if f"{component.asked} later" in self.failing:
                raise MemoryError("no memory left")
            take(component.asked)

        monkeypatch.setattr(measure, "_ours", ours)


@pytest.fixture
def laboratory(tts: Any, monkeypatch: pytest.MonkeyPatch) -> Laboratory:
    return Laboratory(tts, monkeypatch)


@pytest.fixture
def tuned(tts: Any, tmp_path: Path) -> Callable[..., Tuning]:
    config = tc.CompileConfig.off().replace(t3=AUTO, cache_dir=str(tmp_path / "cache"))
    return lambda **options: tune(tts, ["Yes."], **{"config": config, **options})


def ways(found: Tuning) -> dict[str, str]:
    return {trial.way: trial.refused for trial in found.trials}


def test_the_fastest_that_gives_what_stock_gives(laboratory: Laboratory, tuned: Any) -> None:
    found = tuned()
    assert found.config.t3.execution == "inductor"
    assert found.config.t3.draft_tokens == 0  # guessing is not faster here
    assert found.complete
    assert [trial.way for trial in found.trials if trial.kept] == ["inductor"]
    assert found.trials[2].extra_seconds == pytest.approx(5, rel=0.1)
    assert found.trials[2].pays_after == pytest.approx(2.5, rel=0.1)
    assert found.config.flow.execution == "stock"  # not asked to be tuned
    assert "3 calls" in str(found)
    assert "stored in" in str(found)


def test_what_fails_or_differs_is_not_kept(laboratory: Laboratory, tuned: Any) -> None:
    laboratory.failing = {"inductor"}
    found = tuned()
    assert found.config.t3.execution == "eager"
    assert ways(found)["inductor"] == "CompilationError: no compiler"
    laboratory.failing = {"inductor differs", "eager"}
    found = tuned(refresh=True)
    assert found.config.t3.execution == "stock"
    assert ways(found)["inductor"] == "12.3 dB of signal to error"


def test_what_did_not_run_as_asked_is_not_kept(laboratory: Laboratory, tuned: Any) -> None:
    laboratory.failing = {"inductor falls"}
    found = tuned()
    assert found.config.t3.execution == "eager"
    assert ways(found)["inductor, draft tokens"] == "too little"
    laboratory.failing = {"inductor later"}
    found = tuned(refresh=True)
    assert found.config.t3.execution == "eager"
    assert ways(found)["inductor"] == "MemoryError: no memory left"
    laboratory.failing, laboratory.ran = set(), "eager"
    found = tuned(refresh=True)
    assert found.config.t3.execution == "eager"
    assert ways(found)["inductor"] == "it ran eager"


def test_weights_that_this_version_has_not_are_no_objection(laboratory: Laboratory, tuned: Any, tmp_path: Path) -> None:
    config = tc.CompileConfig.off().replace(t3=tc.ComponentPolicy(dtype="bf16"), cache_dir=str(tmp_path / "cache"))
    found = tuned(config=config)
    assert (found.config.t3.execution, found.config.t3.dtype) == ("inductor", "bf16")


def test_a_choice_that_cannot_be_kept_is_good_all_the_same(
    laboratory: Laboratory, tuned: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    def full(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.files, "replaced", full)
    assert tuned().config.t3.execution == "inductor"
    assert "cannot be stored" in caplog.text
    assert not tuned().reused


def test_a_choice_is_made_once(laboratory: Laboratory, tuned: Any, tts: Any, caplog: Any) -> None:
    first = tuned()
    laboratory.compared.clear()
    again = tuned()
    assert again == dataclasses.replace(first, reused=True)
    assert laboratory.compared == []
    path = Path(first.stored)
    assert tc.CompileConfig.from_json(path) == first.config
    assert path.parent.stat().st_mode & 0o777 == 0o700
    for damaged in (path.read_text()[:100], "{}", '{"format": 1}', "nonsense"):
        path.write_text(damaged)
        assert not tuned().reused
    assert "is measured again" in caplog.text
    plain = json.loads(path.read_text())
    plain["trials"][0]["policy"]["execution"] = "sing"
    path.write_text(json.dumps(plain))
    assert not tuned().reused
    assert not tuned(refresh=True).reused


def test_a_choice_belongs_to_threads_versions_texts_and_what_was_asked(
    laboratory: Laboratory, tuned: Any, tts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = {tuned().stored}
    with monkeypatch.context() as patch:
        patch.setattr(store.torch, "get_num_threads", lambda: 77)
        stored.add(tuned().stored)
    with monkeypatch.context() as patch:
        patch.setattr(store.machine, "versions", lambda: {"torch": "9.9"})
        stored.add(tuned().stored)
    folder = str(Path(min(stored)).parents[2])
    config = tc.CompileConfig.off().replace(t3=tc.ComponentPolicy(draft_tokens=1), cache_dir=folder)
    stored.add(tuned(config=config).stored)
    stored.add(tuned(config=config.replace(memory_limit_gb=100.0)).stored)
    with monkeypatch.context() as patch:
        patch.setattr(store, "_code", lambda: "another commit")
        stored.add(tuned().stored)
    recording = tc.testing.make_reference_wav(tmp_path / "voice.wav", seconds=1)
    stored.add(tuned(recording=recording).stored)
    stored.add(tune(tts, ["No."], config=config).stored)
    assert len(stored) == 8


def test_a_budget(laboratory: Laboratory, tuned: Any) -> None:
    found = tuned(budget=8.0)  # enough for one candidate, and for no repeats
    assert not found.complete
    assert found.config.t3.execution == "stock"
    assert "the budget was spent" in str(found)
    assert tuned(budget=8.0).reused
    assert tuned(budget=7.0).reused
    longer = tuned(budget=1000.0)
    assert (longer.reused, longer.complete, longer.config.t3.execution) == (False, True, "inductor")
    assert tuned(budget=8.0).complete


@pytest.mark.parametrize(
    ("options", "message"),
    [({"repeats": 4}, "repeats must be at least 5"), ({"budget": 0.0}, "budget must be positive")],
)
def test_what_cannot_be_asked(tts: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(tc.InputError, match=message):
        tc.autotune(tts, **options)
    with pytest.raises(tc.InputError, match="no texts"):
        tc.autotune(tts, [])
    with pytest.raises(tc.UnsupportedModelError):
        tc.autotune(object())


def test_a_real_choice_leaves_everything_as_it_was(tts: Any, tmp_path: Path) -> None:
    """Without a fake clock: which one is kept depends on the machine."""
    voice, inside, state = tts.conds, dict(vars(tts.conds)), torch.get_rng_state()
    methods = "inference" in vars(tts.t3), "apply_watermark" in vars(tts.watermarker)
    quick = tc.ComponentPolicy(backend="eager")
    config = tc.CompileConfig.off().replace(t3=quick, watermark=AUTO, flow=EAGER.flow, cache_dir=str(tmp_path))
    with tc.compile_model(tts, tc.CompileConfig.off().replace(watermark=AUTO)) as fast:
        chosen = tc.autotune(fast, ["Yes."], config=config, repeats=5)
        assert fast.report().attached
    assert chosen.flow == EAGER.flow
    assert chosen.voice_encoder.execution == "stock"
    assert chosen.t3.execution in ("stock", "eager", "inductor")
    assert ("inference" in vars(tts.t3), "apply_watermark" in vars(tts.watermarker)) == methods
    assert tts.conds is voice
    assert vars(tts.conds) == inside
    assert torch.equal(torch.get_rng_state(), state)
    assert tc.autotune(tts, ["Yes."], config=config) == chosen
    found = tune(tts, ["Yes."], config=config)
    assert {trial.component for trial in found.trials} == {"t3", "watermark"}
    assert all(not trial.refused for trial in found.trials)
    assert all(len(trial.seconds) == 5 for trial in found.trials)
