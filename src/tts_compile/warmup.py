"""Compiling ahead of the first utterance, and speaking a little to see that nothing is left to compile."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from tqdm import tqdm

from .bucketing import Range
from .components.component_set import ComponentSet as Assembly
from .components.seam import Seam
from .report import WarmupReport
from .sample_text import prose
from .timing.blocks import Stopwatch, timed

SAMPLE_TOKENS = 8  # of speech, of each built-in text: what may compile is compiled by the first few
_OTHERWISE = ((0, 200),)  # lengths in characters, where there are no buckets


def warm_up(
    tts: Any,
    components: Assembly,
    speak: Callable[..., object],
    texts: Iterable[str],
    samples: Sequence[str],
    progress: bool | Callable[[str], object],
    compiles: bool = True,
) -> WarmupReport:
    """Have every component compile whatever it may need, then speak.

    Args:
        tts: the model, which must have a voice to speak with.
        components: of the model.
        speak: its ``generate``.
        texts: spoken to their ends.
        samples: texts of which a few speech tokens are spoken.
        progress: True shows a bar; a function is told each step's name as it begins.
        compiles: False for a model that has been restored.
    """
    seconds: dict[str, float] = {}
    texts = list(texts)
    names = list(components) if compiles else []
    with (
        tqdm(total=len(names) + len(texts) + len(samples), disable=progress is not True, leave=False) as bar,
        torch.random.fork_rng(),
    ):

        @contextlib.contextmanager
        def step(name: str) -> Iterator[Stopwatch]:
            bar.set_description(name)
            if callable(progress):
                progress(name)
            with Stopwatch() as watch:
                yield watch
            bar.update()

        def compiling(name: str) -> None:
            with step(f"compiling {name}"), timed(name), Stopwatch() as watch:
                components[name].warm_up()
            seconds[name] = seconds.get(name, 0.0) + watch.seconds

        for name in names:
            compiling(name)
        with Stopwatch() as speaking:
            for text in texts:
                with step(f"speaking {len(text)} characters"):
                    _speak(tts, speak, text)
            with _at_most(tts.t3, SAMPLE_TOKENS) if samples else contextlib.nullcontext():
                for text in sorted(samples, key=len, reverse=True):  # the longest needs the largest cache
                    with step(f"speaking the beginning of {len(text)} characters"):
                        _speak(tts, speak, text)
        for name, engine in components.engines.items():
            if compiles and engine.recompiled:  # a cache has grown, and what was recorded for the smaller one is gone
                compiling(name)
    graphs = {name: row.graphs for name, row in components.report().items()}
    return WarmupReport(seconds, graphs, len(texts) + len(samples), speaking.seconds)


def sample_texts(buckets: Sequence[Range], count: int, longest: int = 1000) -> list[str]:
    """``count`` built-in texts whose lengths spread over the buckets, the last at the upper end of the last.

    None is longer than ``longest``.

    >>> [len(text) for text in sample_texts([(50, 200), (200, 500), (500, 1000)], 3)]
    [200, 500, 1000]
    >>> [len(text) for text in sample_texts([(50, 200), (200, 500)], 4)]
    [125, 200, 350, 500]
    """
    ranges = buckets or _OTHERWISE
    lengths = []
    for i in range(1, count + 1):
        place = i / count * len(ranges)
        index = math.ceil(place) - 1
        low, high = ranges[index]
        lengths.append(low + round((high - low) * (place - index)))
    return [prose(min(max(length, 1), longest)) for length in lengths]


def _speak(tts: Any, speak: Callable[..., object], text: str) -> None:
    """At the voice's own exaggeration: another would replace it."""
    speak(text, exaggeration=float(tts.conds.t3.emotion_adv[0, 0, 0]))


@contextlib.contextmanager
def _at_most(t3: Any, tokens: int) -> Iterator[None]:
    """Have an utterance of this thread end after so many speech tokens."""
    inference, this_thread = t3.inference, threading.get_ident()

    def beginning(*args: Any, **kwargs: Any) -> Any:
        limit = {"max_new_tokens": tokens} if threading.get_ident() == this_thread else {}
        return inference(*args, **{**kwargs, **limit})

    seam = Seam(t3, "inference", beginning)
    seam.attach()
    try:
        yield
    finally:
        seam.detach()
