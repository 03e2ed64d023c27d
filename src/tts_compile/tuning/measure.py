"""Measures stock and every candidate policy on the same calls, in turn."""

from __future__ import annotations

import dataclasses
import functools
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..api import as_stock
from ..audio.synthetic_voice import make_reference_wav
from ..components.component import Component, EagerComponent
from ..components.component_set import ComponentSet
from ..config import COMPONENTS, CompileConfig, ComponentPolicy
from ..errors import InputError
from ..fallback import reason
from ..families import family_of
from ..measuring.interleaved import alternate, seconds, timed_call
from ..measuring.progress import Step
from ..measuring.proof import COMPILED
from ..measuring.stats import FEWEST, ratio_of_medians
from ..parity import ComponentParity, Thresholds, compare
from ..parity.recorded_calls import Call, Methods, methods_of, recorded
from ..timing.blocks import Stopwatch, Timings
from ..utils.random_state import generators_kept
from ..validation import checked_inputs
from . import store
from .trial import STOCK, Trial, Tuning, best_of

TEXT = "The rain had stopped by noon, and nobody asked why."


def autotune(tts: Any, texts: Sequence[str] | None = None, **options: Any) -> CompileConfig:
    """Returns the policies that are fastest on this machine for these texts: measured once, then read from a file.

    A policy is kept where it is faster than stock, and than simpler ones, beyond noise, and gives what stock gives.
    A component in which nothing is compiled is kept unless it is slower.
    Components whose policy in ``config`` is not ``"auto"`` stay as they are asked for.

    Args:
        tts: the model; a compiled one is stock during the measurement.
        texts: typical ones; None takes one sentence.
        options: of :func:`tts_compile.tuning.tune`: ``config``, ``budget`` in seconds, ``repeats``, ``seed``,
            ``recording``, ``refresh``, ``step``.

    Raises:
        InputError: for texts that cannot be spoken.
    """
    return tune(tts, texts, **options).config


def tune(
    tts: Any,
    texts: Sequence[str] | None = None,
    *,
    config: CompileConfig | None = None,
    budget: float | None = None,
    repeats: int = 5,
    seed: int = 0,
    recording: str | Path | None = None,
    refresh: bool = False,
    step: Step = lambda _: None,
) -> Tuning:
    """Returns what :func:`autotune` chooses, with everything that was measured.

    Args:
        tts: the model; a compiled one is stock during the measurement.
        texts: typical ones; None takes one sentence.
        config: settings beside the chosen policies; None reads the environment.
        budget: seconds after which nothing new is tried; None for no limit.
        repeats: of every policy, alternating; at least 5, since fewer give no interval.
        seed: of the first text.
        recording: of a voice; None makes one.
        refresh: measure again where a choice is stored.
        step: called with the name of each step.
    """
    if repeats < FEWEST:
        raise InputError(f"repeats must be at least {FEWEST}, got {repeats}")
    if budget is not None and not budget > 0:
        raise InputError(f"budget must be positive or None, got {budget}")
    config = CompileConfig.from_env() if config is None else config
    with (
        as_stock(tts) as model,
        torch.inference_mode(mode=False),
        torch.no_grad(),
        generators_kept((family := family_of(type(model))).device(model)),
    ):
        texts = checked_inputs(model, family, [TEXT] if texts is None else texts, recording)
        key = store.key(model, config, texts, recording)
        path = store.path(config, key)
        found = None if refresh else store.read(path, key, config)
        if found is not None and (found.complete or _no_more(budget, found.budget)):
            return found
        asked = _Asked(config, budget, repeats, seed, recording, step)
        tuning = Tuning(*_measured(model, texts, asked), key=key, budget=budget, stored=str(path))
    store.write(tuning)
    return tuning


class _Asked(NamedTuple):
    """The arguments of :func:`tune` that the measurement reads."""

    config: CompileConfig
    budget: float | None
    repeats: int
    seed: int
    recording: str | Path | None
    step: Step


def _no_more(budget: float | None, before: float | None) -> bool:
    """Returns whether a budget allows no more trials than the one before."""
    return budget is not None and before is not None and budget <= before


def _measured(tts: Any, texts: Sequence[str], asked: _Asked) -> tuple[CompileConfig, tuple[Trial, ...], bool]:
    """Returns the chosen configuration, all trials, and whether everything was measured within the budget."""
    family, config, step = family_of(type(tts)), asked.config, asked.step
    trials: list[Trial] = []
    chosen: dict[str, ComponentPolicy] = {}
    with (
        Stopwatch() as watch,
        tempfile.TemporaryDirectory(prefix="tts-compile-tuning-") as folder,
        family.voice.kept(tts),
    ):

        def spent() -> bool:
            return asked.budget is not None and watch.seconds >= asked.budget

        path = str(asked.recording or make_reference_wav(Path(folder) / "voice.wav", seconds=5))
        methods = _methods(tts, config)
        with recorded(tts, family, methods) as calls:
            step("stock: the voice")
            family.voice.prepare(tts, path)
            for number, text in enumerate(texts if family.speech else [path]):
                step(f"stock: text {number + 1} of {len(texts)}")
                torch.manual_seed(asked.seed + number)
                tts.generate(text)
        for name in methods:
            mine = [call for call in calls if call.component == name]
            if getattr(config, name).execution != "auto" or not mine:
                continue
            with family.voice.kept(tts):
                tried = _tried(tts, name, mine, asked, spent)
            best = best_of(tried)
            best.kept = True
            trials += tried
            chosen[name] = best.policy
        return config.replace(**chosen), tuple(trials), not spent()


def _methods(tts: Any, config: CompileConfig) -> Methods:
    """Returns the methods that components would replace, without preparing anything for compiled code."""
    eager = {
        name: dataclasses.replace(getattr(config, name), execution="eager", dtype="model")
        for name in COMPONENTS
        if getattr(config, name).execution != "stock"
    }
    components = ComponentSet(tts, family_of(type(tts)), CompileConfig.off().replace(**eager), Timings())
    return methods_of({name: components[name] for name in components})


def candidates(policy: ComponentPolicy, name: str, device: torch.device) -> dict[str, ComponentPolicy]:
    """Returns the policies worth trying in place of ``"auto"``, the simplest first."""
    asked = functools.partial(dataclasses.replace, policy)
    if name not in COMPILED:
        return {"eager": asked(execution="eager")}
    found = {"eager": asked(execution="eager"), "inductor": asked(execution="inductor")}
    if name == "t3" and device.type == "cpu" and policy.draft_tokens is None:
        found["inductor"] = asked(execution="inductor", draft_tokens=0)
        found["inductor, draft tokens"] = asked(execution="inductor")
    if name != "vocoder" and device.type == "cuda":
        for word, fuse in (("cuda_graph", False), ("cuda_graph, fused", True)):
            if policy.fuse in (None, fuse):
                found[word] = asked(execution="cuda_graph", fuse=fuse)
    return found


def _tried(tts: Any, name: str, calls: Sequence[Call], asked: _Asked, spent: Callable[[], bool]) -> list[Trial]:
    """Returns the trials of stock and of every candidate on the same calls, in turn."""
    family, config, step = family_of(type(tts)), asked.config, asked.step
    device = family.device(tts)
    stock = ComponentPolicy(execution="stock")
    # A policy that cannot run must raise an error, and not be measured at another level.
    alone = config.replace(**dict.fromkeys(COMPONENTS, stock), fallback="raise", compile_in_background=False)
    trials = [Trial(name, STOCK, stock, len(calls))]
    sides: dict[str, Callable[[], None]] = {STOCK: functools.partial(_stock, calls)}
    parts: list[Component] = []
    for way, policy in candidates(getattr(config, name), name, device).items():
        if spent():
            break
        step(f"{name}: {way}")
        trials.append(trial := Trial(name, way, policy, len(calls)))
        try:
            # This version has no weights but the model's.
            only = alone.replace(**{name: dataclasses.replace(policy, dtype="model")})
            parts.append(component := ComponentSet(tts, family, only, Timings())[name])
            compared = functools.partial(compare, component, calls, Thresholds.of(component.dtype))
            parity, trial.extra_seconds = timed_call(str(device), compared)
            trial.refused = "; ".join(_objections(component, policy, parity))
            sides[way] = functools.partial(_repeated, trial, component, calls)
        except Exception as error:  # of any kind: the other policies remain
            trial.refused = reason(error)
    try:
        measured = alternate(
            sides, asked.repeats, lambda call: step(f"{name}: {call}"), device=str(device), enough=spent
        )
    finally:
        for component in parts:
            component.release()
    for trial in trials:
        trial.seconds = () if trial.refused else tuple(seconds(measured[trial.way]))
        known = trial.seconds and trial.way != STOCK
        trial.extra_seconds = max(0.0, trial.extra_seconds - statistics.median(trial.seconds)) if known else 0.0
        trial.gain = ratio_of_medians(trials[0].seconds, trial.seconds) if known else None
    return trials


def _repeated(trial: Trial, component: Component, calls: Sequence[Call]) -> None:
    if not trial.refused:
        try:
            _ours(component, calls)
        except Exception as error:  # of any kind, for the same reason
            trial.refused = reason(error)


def _objections(component: Component, policy: ComponentPolicy, parity: ComponentParity) -> list[str]:
    """Returns the reasons against a candidate: it differs from stock, or did not run as its policy asks."""
    found = list(parity.failures)
    if parity.stock_calls:
        found.append(f"stock answered {parity.stock_calls} of {parity.calls} calls")
    elif parity.ran != policy.execution:
        found.append(f"it ran {parity.ran}")
    return found + [event.error for event in component.fallback.events]


def _stock(calls: Sequence[Call]) -> None:
    for call in calls:
        call.repeat_stock()


def _ours(component: Component, calls: Sequence[Call]) -> None:
    if isinstance(component, EagerComponent):
        component.release()  # or cached results would be measured
    try:
        component.attach()
        for call in calls:
            call.repeat()
    finally:
        component.detach()
