"""Compiles ahead of the first utterance, and generates a little speech to check that nothing is left to compile."""

from __future__ import annotations

import contextlib
import inspect
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from .attachment import Attachment
from .bucketing import Range
from .components.seam import Seam
from .report import WarmupReport
from .sample_text import prose
from .timing.blocks import Stopwatch, timed
from .utils.random_state import generators_kept

SAMPLE_TOKENS = 8  # speech tokens of each built-in text: the first few compile whatever is left to compile
_WITHOUT_BUCKETS = ((0, 200),)  # lengths in characters


def warm_up(
    attachment: Attachment,
    generate: Callable[..., object],
    texts: Sequence[str] | None,
    progress: bool | Callable[[str], object],
) -> WarmupReport:
    """Has every attached component compile whatever it may need, then generates speech.

    Args:
        attachment: of the model.
        generate: the model's ``generate``.
        texts: generated in full; None generates the first speech tokens of built-in texts.
        progress: True shows a bar; a function is called with the name of each step as it begins.
    """
    components = attachment.components
    samples = _samples(attachment) if texts is None else []
    texts = texts or []
    seconds: dict[str, float] = {}
    names = list(components) if attachment.attached else []
    with (
        tqdm(total=len(names) + len(texts) + len(samples), disable=progress is not True, leave=False) as bar,
        generators_kept(attachment.family.device(attachment.tts)),
    ):

        @contextlib.contextmanager
        def step(name: str) -> Iterator[None]:
            bar.set_description(name)
            if callable(progress):
                progress(name)
            yield
            bar.update()

        def compile_all(names: Iterable[str]) -> None:
            for name in names:
                with step(f"compiling {name}"), timed(name), Stopwatch() as watch:
                    components[name].warm_up()
                seconds[name] = seconds.get(name, 0.0) + watch.seconds

        def speak_all(texts: Iterable[str], title: str) -> None:
            for text in texts:
                with step(f"{title} {len(text)} characters"):
                    generate(text, **attachment.family.neutral(attachment.tts))

        compile_all(names)
        with Stopwatch() as watch:
            speak_all(texts, "speaking")
            if samples:
                with _at_most(attachment, SAMPLE_TOKENS):  # the longest first: it needs the largest cache
                    speak_all(sorted(samples, key=len, reverse=True), "speaking the beginning of")
        # Where a cache has grown, graphs captured for the smaller one are lost.
        compile_all(name for name, engine in components.engines.items() if name in names and engine.recompiled)
    graphs = {name: row.graphs for name, row in components.report().items()}
    return WarmupReport(seconds, graphs, len(texts) + len(samples), watch.seconds)


def _samples(attachment: Attachment) -> list[str]:
    """Returns built-in texts that the model can speak now, where it compiles anything."""
    tts, family, config = attachment.tts, attachment.family, attachment.config
    speech = family.speech
    if speech is None or family.voice.of(tts) is None or not (attachment.attached and attachment.components.engines):
        return []
    longest = speech.longest_text(speech.of(tts)) // 2  # leaves room for two tokens a character
    return sample_texts(config.buckets, config.warmup_samples, longest)


def sample_texts(buckets: Sequence[Range], count: int, longest: int = 1000) -> list[str]:
    """Returns built-in texts whose lengths spread over the buckets; the last one fills the last bucket.

    Args:
        buckets: ranges of lengths in characters.
        count: the number of texts.
        longest: characters of a text at most.

    >>> [len(text) for text in sample_texts([(50, 200), (200, 500), (500, 1000)], 3)]
    [200, 500, 1000]
    >>> [len(text) for text in sample_texts([(50, 200), (200, 500)], 4)]
    [125, 200, 350, 500]
    """
    ranges = buckets or _WITHOUT_BUCKETS
    ends = [ranges[0][0], *(high for _, high in ranges)]
    lengths = np.interp(np.linspace(0, len(ranges), count + 1)[1:], range(len(ends)), ends)
    return [prose(min(max(round(length), 1), longest)) for length in lengths]


@contextlib.contextmanager
def _at_most(attachment: Attachment, tokens: int) -> Iterator[None]:
    """Ends utterances of this thread after a number of speech tokens, inside the block."""
    speech = attachment.family.speech
    assert speech is not None
    model = speech.of(attachment.tts)
    method, limit, this_thread = getattr(model, speech.method), speech.limit, threading.get_ident()
    signature = inspect.signature(method)

    def limited(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs)
        if threading.get_ident() == this_thread:
            given.arguments[limit] = tokens
        return method(*given.args, **given.kwargs)

    seam = Seam(model, speech.method, limited)
    seam.attach()
    try:
        yield
    finally:
        seam.detach()
