"""``tts-compile bench``: its subjects, and the files that its results are written to."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ..bench import batch, overhead, page, plots, soak, startup, synthesis, t3, voice
from ..bench.models import checkpoint
from ..bench.result import Result, as_json, markdown
from ..utils.files import refuse_unwritable, replaced
from . import options


class Subject(NamedTuple):
    """One benchmark.

    Attributes:
        settings: its settings class, whose fields are its options.
        run: measures; takes the source of a model and the settings, or the settings alone.
        about: help of the command.
        speech_tokens: returns the number after which a synthetic model stops; None for a benchmark without a model.
    """

    settings: type
    run: Callable[..., Result]
    about: str
    speech_tokens: Callable[[Any], int] | None = lambda settings: int(settings.tokens)


SUBJECTS = {
    # Far beyond the tokens asked for, so that nothing stops early.
    "t3": Subject(t3.Settings, t3.run, "the token loop", lambda s: min(max(4 * s.tokens, 200), 1000)),
    "flow": Subject(synthesis.FlowSettings, synthesis.run, "speech tokens to mel frames"),
    "vocoder": Subject(synthesis.VocoderSettings, synthesis.run, "mel frames to a wave"),
    "voice": Subject(voice.Settings, voice.run, "the reference voice, in fresh processes", lambda _: 60),
    "load": Subject(startup.LoadSettings, startup.run_load, "imports, checkpoint, first call, in fresh processes"),
    "startup": Subject(
        startup.StartupSettings, startup.run_startup, "the first call of fresh processes, and its cache"
    ),
    "e2e": Subject(synthesis.Settings, synthesis.run, "the whole generate"),
    "batch": Subject(batch.Settings, batch.run, "many texts at once"),
    "soak": Subject(soak.Settings, soak.run, "many calls: whether anything grows or slows down"),
    "overhead": Subject(overhead.Settings, overhead.run, "the cost of a timed block, with limits", None),
}


def add(bench: argparse.ArgumentParser, model: argparse.ArgumentParser, output: argparse.ArgumentParser) -> None:
    """Adds every subject to the command; ``model`` has the options of a model, and ``output`` those of a result."""
    written = argparse.ArgumentParser(add_help=False)
    written.add_argument("--out", dest="save", type=Path, metavar="FILE", help="write the JSON here too")
    written.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables here too")
    written.add_argument("--html", type=Path, metavar="FILE", help="write a page with tables and plots here too")
    subjects = bench.add_subparsers(required=True, metavar=" | ".join(SUBJECTS))
    for name, subject in SUBJECTS.items():
        parents = [model if subject.speech_tokens else output, written]
        command = subjects.add_parser(name, parents=parents, help=subject.about)
        options.add(command, subject.settings)
        command.set_defaults(bench=name)


def run(args: argparse.Namespace) -> Result:
    """Measures what the command line asks for, once it is known that the result can be written."""
    if args.html is not None:
        plots.require()
    for path, _ in _targets(args):
        refuse_unwritable(path)
    subject = SUBJECTS[args.bench]
    settings: Any = options.read(args, subject.settings)
    if subject.speech_tokens is None:
        return subject.run(settings)
    with checkpoint(args.model, args.size, args.seed, subject.speech_tokens(settings), args.checkpoint_dir) as source:
        return subject.run(source, settings)


def save(result: Result, args: argparse.Namespace) -> None:
    """Writes the files that the command line asks for, each whole or not at all."""
    for path, content in _targets(args):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced(path) as beside:
            beside.write_text(content(result), encoding="utf-8")


def _targets(args: argparse.Namespace) -> list[tuple[Path, Callable[[Result], str]]]:
    """Returns the files that the command line asks for, and the functions that make their content."""
    targets: list[tuple[Path | None, Callable[[Result], str]]] = [
        (args.save, lambda result: as_json(result.to_dict()) + "\n"),
        (args.markdown, lambda result: markdown(result.shown(), result.title) + "\n"),
        (args.html, page.render),
    ]
    return [(path, content) for path, content in targets if path is not None]
