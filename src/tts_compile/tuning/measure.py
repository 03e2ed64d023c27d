"""Stock and every candidate on the same calls, in turn."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from .. import testing
from ..api import as_stock
from ..bench.models import timed_call
from ..components.component import Component, EagerComponent
from ..components.component_set import ComponentSet as Assembly
from ..config import COMPONENTS, CompileConfig, ComponentPolicy
from ..errors import InputError
from ..fallback import reason
from ..measuring.interleaved import alternate, seconds
from ..measuring.stats import FEWEST, ratio_of_medians
from ..parity import ComponentParity, Thresholds, Voice, compare
from ..parity.recorded_calls import Call, Methods, methods_of, recorded
from ..timing.blocks import Stopwatch
from ..validation import checked_inputs
from . import store
from .trial import COMPILED, STOCK, Trial, Tuning, best_of

TEXT = "The rain had stopped by noon, and nobody asked why."


def autotune(tts: Any, texts: Sequence[str] | None = None, **options: Any) -> CompileConfig:
    """The policies that are fastest on this machine for these texts; measured once, then read from a file.

    A policy is kept where it is faster than stock, and than simpler ones, beyond noise, and gives what stock gives.
    What has nothing to compile is kept unless it is slower.
    Components whose policy in ``config`` is not ``"auto"`` stay as they are asked for.

    Args:
        tts: the model; a compiled one is stock meanwhile.
        texts: what is usual; one sentence where there are none.
        options: of :func:`tts_compile.tuning.tune`: ``config``, ``budget`` in seconds, ``repeats``, ``seed``,
            ``recording``, ``refresh``, ``step``.

    Raises:
        InputError: for texts that are none.
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
    step: Callable[[str], object] = lambda _: None,
) -> Tuning:
    """As :func:`autotune`, with everything that was measured.

    Args:
        tts, texts: as there.
        config: what else is asked for; None reads the environment.
        budget: seconds after which nothing new is tried; None for any.
        repeats: of every policy, alternating; at least 5, or nothing could be told from noise.
        seed: of the first text.
        recording: of a voice; None makes one.
        refresh: measure again where a choice is stored.
        step: told what is being done.
    """
    if repeats < FEWEST:
        raise InputError(f"repeats must be at least {FEWEST}, got {repeats}")
    if budget is not None and not budget > 0:
        raise InputError(f"budget must be positive or None, got {budget}")
    config = CompileConfig.from_env() if config is None else config
    with as_stock(tts) as model, torch.inference_mode(mode=False), torch.no_grad(), torch.random.fork_rng():
        texts = checked_inputs(model, [TEXT] if texts is None else texts, recording)
        key = store.key(model, config, texts, recording)
        path = store.path(config, key)
        found = None if refresh else store.read(path, key, config)
        if found is not None and (found.complete or _no_more(budget, found.budget)):
            return found
        tuning = _measured(model, texts, config, budget, repeats, seed, recording, step, key, str(path))
    store.write(tuning)
    return tuning


def _no_more(budget: float | None, before: float | None) -> bool:
    """Whether a budget would not get any further than the one before."""
    return budget is not None and before is not None and budget <= before


def _measured(
    tts: Any,
    texts: Sequence[str],
    config: CompileConfig,
    budget: float | None,
    repeats: int,
    seed: int,
    recording: str | Path | None,
    step: Callable[[str], object],
    key: dict[str, Any],
    stored: str,
) -> Tuning:
    device = next(tts.s3gen.parameters()).device
    voice = Voice(tts)
    trials: list[Trial] = []
    chosen: dict[str, ComponentPolicy] = {}
    with Stopwatch() as watch, tempfile.TemporaryDirectory(prefix="tts-compile-tuning-") as folder, voice.kept():

        def spent() -> bool:
            return budget is not None and watch.seconds >= budget

        path = str(recording or testing.make_reference_wav(Path(folder) / "voice.wav", seconds=5))
        methods = _methods(tts, config)
        with recorded(methods, device, tts) as calls:
            step("stock: the voice")
            voice.prepare(path)
            for number, text in enumerate(texts if hasattr(tts, "t3") else [path]):
                step(f"stock: text {number + 1} of {len(texts)}")
                torch.manual_seed(seed + number)
                tts.generate(text)
        for name in methods:
            mine = [call for call in calls if call.component == name]
            if getattr(config, name).execution != "auto" or not mine:
                continue
            with voice.kept():
                tried = _tried(tts, name, mine, config, repeats, str(device), spent, step)
            best = best_of(tried)
            trials += [dataclasses.replace(trial, kept=trial is best) for trial in tried]
            chosen[name] = best.policy
        complete = not spent()
    return Tuning(config.replace(**chosen), tuple(trials), key, budget, complete, stored)


def _methods(tts: Any, config: CompileConfig) -> Methods:
    """Those that components would replace; made without what only compiled code needs."""
    eager = {
        name: dataclasses.replace(getattr(config, name), execution="eager", dtype="model")
        for name in COMPONENTS
        if getattr(config, name).execution != "stock"
    }
    assembly = Assembly(tts, CompileConfig.off().replace(**eager))
    return methods_of({name: assembly[name] for name in assembly})


def candidates(policy: ComponentPolicy, name: str, device: torch.device) -> dict[str, ComponentPolicy]:
    """Policies worth trying in place of ``"auto"``, the simplest first."""
    asked = functools.partial(dataclasses.replace, policy)
    if name not in COMPILED:
        return {"eager": asked(execution="eager")}
    found = {"eager": asked(execution="eager"), "inductor": asked(execution="inductor")}
    if name == "t3" and device.type == "cpu" and policy.draft_tokens is None:
        found["inductor"] = asked(execution="inductor", draft_tokens=0)
        found["inductor, guessing"] = asked(execution="inductor")
    if name != "vocoder" and device.type == "cuda":
        for word, fuse in (("cuda_graph", False), ("cuda_graph, fused", True)):
            if policy.fuse in (None, fuse):
                found[word] = asked(execution="cuda_graph", fuse=fuse)
    return found


def _tried(
    tts: Any,
    name: str,
    calls: Sequence[Call],
    config: CompileConfig,
    repeats: int,
    device: str,
    spent: Callable[[], bool],
    step: Callable[[str], object],
) -> list[Trial]:
    """Stock and every candidate on the same calls, in turn."""
    sides: dict[str, Callable[[], None]] = {STOCK: functools.partial(_stock, calls)}
    policies = {STOCK: ComponentPolicy(execution="stock")}
    refused: dict[str, str] = {STOCK: ""}
    first: dict[str, float] = {STOCK: 0.0}
    parts: list[Component] = []
    # what cannot run as asked is to say so, and not to be measured at another level
    others = dict.fromkeys(COMPONENTS, ComponentPolicy(execution="stock"))
    alone = config.replace(**others, fallback="raise", compile_in_background=False)

    def trying(way: str, component: Component) -> Callable[[], None]:
        def side() -> None:
            if not refused[way]:
                try:
                    _ours(component, calls)
                except Exception as error:  # of any kind: it is one of several, and stock is there
                    refused[way] = reason(error)

        return side

    for way, policy in candidates(getattr(config, name), name, torch.device(device)).items():
        if spent():
            break
        step(f"{name}: {way}")
        policies[way], first[way] = policy, 0.0
        try:
            # as this version would run it: there are no other weights than the model's
            component = Assembly(tts, alone.replace(**{name: dataclasses.replace(policy, dtype="model")}))[name]
            parts.append(component)
            thresholds = Thresholds.of(component.dtype)
            parity, first[way] = timed_call(device, functools.partial(compare, component, calls, thresholds))
        except Exception as error:  # likewise
            refused[way] = reason(error)
            continue
        sides[way] = trying(way, component)
        refused[way] = "; ".join(_objections(component, policy, parity))
    try:
        measured = alternate(sides, repeats, _Steps(name, step), device=device, enough=spent)
    finally:
        for component in parts:
            component.release()
    times = {way: () if refused[way] else tuple(seconds(measured.get(way, []))) for way in policies}
    trials = []
    for way, policy in policies.items():
        known = times[way] and times[STOCK]
        gain = ratio_of_medians(times[STOCK], times[way]) if known and way != STOCK else None
        compiling = max(0.0, first[way] - statistics.median(times[way])) if known and way != STOCK else 0.0
        trials.append(Trial(name, way, policy, len(calls), times[way], compiling, refused[way], gain))
    return trials


def _objections(component: Component, policy: ComponentPolicy, parity: ComponentParity) -> list[str]:
    """Why a candidate may not be kept: it is not as stock, or did not run as it was asked to."""
    found = list(parity.failures)
    if parity.stock_calls:
        found.append(f"stock answered {parity.stock_calls} of {parity.calls} calls")
    elif parity.ran != policy.execution:
        found.append(f"it ran {parity.ran}")
    return found + [event.error for event in component.fallback.events]


def _stock(calls: Sequence[Call]) -> None:
    for call in calls:
        call.stock()


def _ours(component: Component, calls: Sequence[Call]) -> None:
    if isinstance(component, EagerComponent):
        component.release()  # what it remembers is no measure of what it does
    try:
        component.attach()
        for call in calls:
            call.again()
    finally:
        component.detach()


class _Steps:
    """What :func:`alternate` reports to."""

    def __init__(self, name: str, step: Callable[[str], object]) -> None:
        self._name = name
        self._step = step

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Tell."""
        self._step(f"{self._name}: {name}")
        yield
