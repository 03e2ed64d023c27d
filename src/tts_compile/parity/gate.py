"""Leaves components to stock whose results differ from stock's."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import torch

from ..attachment import Attachment
from ..components.seam import attach_all, detach_all
from ..errors import ParityError
from .measure import TEXTS, compare_generate, inputs, measure
from .recorded_calls import methods_of, recorded
from .report import ParityReport


def keep_what_passes(attachment: Attachment) -> ParityReport:
    """Gives up every component whose results differ from stock's; the execution report has an event for each.

    Where whole utterances differ although each component passes, the fewest components are given up without which
    they pass.

    Returns:
        The comparison of all components.

    Raises:
        ParityError: instead, where the policy is ``"raise"``.
    """
    first = found = measure(attachment, TEXTS[:1])
    while found.failures:
        failed = {name: part.failures[0] for name, part in found.components.items() if not part.passed}
        unexplained = ""
        if not failed:
            failed, unexplained = _blamed(attachment, found)
        if attachment.config.fallback == "raise":
            message = "; ".join(f"{name}: {why}" for name, why in failed.items())
            raise ParityError(message or unexplained, found)
        for name, why in failed.items():
            attachment.components.give_up(name, why)
        if not failed:
            for name in found.components:
                attachment.components[name].fallback.record("validate", unexplained, "kept")
            break
        found = measure(attachment, TEXTS[:1])  # the others must pass without them
    return first


def _blamed(attachment: Attachment, found: ParityReport) -> tuple[dict[str, str], str]:
    """Finds the fewest components without which whole utterances pass.

    Args:
        attachment: of the model.
        found: a comparison in which every component passes and a whole utterance does not.

    Returns:
        For each of these components what fails with it, and where there are none, why no component can be blamed.
    """
    tts, family = attachment.tts, attachment.family
    components = {name: attachment.components[name] for name in found.components}
    figure = next(failure for wave in found.waves for failure in wave.failures)
    with inputs(attachment, TEXTS[:1]) as ((text,), path), attachment.suspended():
        if family.voice.of(tts) is None:
            family.voice.prepare(tts, path)
        with recorded(tts, family, methods_of(components)) as calls:
            torch.manual_seed(0)
            stock = tts.generate(text)
        names = [name for name in components if any(call.component == name for call in calls)]

        def failure(attached: Iterable[str]) -> str:
            """Returns what fails in an utterance with some components attached, or an empty string."""
            parts = [components[name] for name in attached]
            attach_all(parts)
            try:
                torch.manual_seed(0)
                return next(iter(compare_generate(attachment, text, stock, found.thresholds["wave"]).failures), "")
            finally:
                detach_all(parts)

        if why := failure([]):
            return {}, f"whole utterances of stock differ from each other ({why}): no component can be blamed"
        if not failure(names):
            return {}, f"whole utterances passed when they were repeated ({figure}): no component can be blamed"
        for count in range(1, len(names) + 1):
            # The first components of a configuration gain most, so the last ones are given up first.
            for given_up in itertools.combinations(reversed(names), count):
                kept = [name for name in names if name not in given_up]
                if kept and failure(kept):
                    continue
                together = f", together with {', '.join(kept) or 'others'}: {figure}"
                alone = {name: failure([name]) for name in given_up}
                whys = {name: f" with it alone: {why}" if why else together for name, why in alone.items()}
                return {name: f"whole utterances{why}" for name, why in whys.items()}, ""
        raise AssertionError("no component is kept in the last round")
