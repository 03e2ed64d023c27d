"""``tts-compile bench``: its subjects, their options, and where their results go."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..bench import batch, loading, overhead, page, plots, report, soak, startup, synthesis, t3, texts, voice
from ..bench.models import checkpoint
from ..bench.section import Result, as_json, markdown
from ..loading import DTYPES
from ..measuring.stats import FEWEST
from ..sample_text import TEXT
from ..utils.files import refuse_unwritable, replaced

_ENDS = {"json": "json", "markdown": "md", "html": "html"}
_NO_MEMORY = "leave out the memory of two fresh processes"


def run(args: argparse.Namespace) -> Result:
    """Measure what the command line asks for, once it is known that it can be shown as asked."""
    if args.html is not None or args.folder is not None:
        plots.require()
    for path in _targets(args).values():
        refuse_unwritable(path)
    result: Result = args.measure(args)
    return result


def save(result: Result, args: argparse.Namespace) -> None:
    """Write the files that the command line asks for, each whole or not at all."""
    writers: dict[str, Callable[[Path], object]] = {
        "json": lambda path: path.write_text(as_json(result.to_dict()) + "\n", encoding="utf-8"),
        "markdown": lambda path: path.write_text(markdown(result.sections(), result.title) + "\n", encoding="utf-8"),
        "html": lambda path: path.write_text(page.render(result), encoding="utf-8"),
    }
    for kind, path in _targets(args).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced(path) as beside:
            writers[kind](beside)


def _targets(args: argparse.Namespace) -> dict[str, Path]:
    """The files that the command line asks for, by kind."""
    if args.folder is not None:
        return {kind: args.folder / f"report.{end}" for kind, end in _ENDS.items()}
    given = {"json": args.save, "markdown": args.markdown, "html": args.html}
    return {kind: path for kind, path in given.items() if path is not None}


@contextmanager
def _source(args: argparse.Namespace, speech_tokens: int) -> Iterator[str]:
    with checkpoint(args.model, args.size, args.seed, speech_tokens, args.checkpoint_dir) as source:
        yield source


def _t3(args: argparse.Namespace) -> Result:
    settings = t3.Settings(args.device, args.repeats, args.tokens, args.text, args.seed, memory=not args.no_memory)
    # Far beyond the tokens asked for, so that nothing stops early.
    with _source(args, speech_tokens=min(max(4 * args.tokens, 200), 1000)) as source:
        return t3.run(source, settings)


def _synthesis(args: argparse.Namespace) -> Result:
    s, memory = args, not getattr(args, "no_memory", True)
    text = getattr(args, "text", TEXT)
    settings = synthesis.Settings(s.subject, s.device, s.repeats, s.tokens, text, s.seed, memory)
    with _source(args, speech_tokens=args.tokens) as source:
        return synthesis.run(source, settings)


def _e2e(args: argparse.Namespace) -> Result:
    if args.lengths is None:
        return _synthesis(args)
    settings = texts.Settings(texts.of_lengths(args.lengths), args.device, args.repeats, args.seed)
    with _source(args, speech_tokens=args.tokens) as source:
        return texts.run(source, settings)


def _batch(args: argparse.Namespace) -> Result:
    sizes = tuple(args.sizes or batch.Settings.sizes)
    shortest, longest = sorted(args.chars)
    settings = batch.Settings(
        args.device, args.repeats, args.chunks, shortest, longest, sizes, args.seed, stock=not args.no_stock
    )
    with _source(args, speech_tokens=args.tokens) as source:
        return batch.run(source, settings)


def _voice(args: argparse.Namespace) -> Result:
    with _source(args, speech_tokens=60) as source:
        return voice.run(source, voice.Settings(args.device, args.repeats, args.seconds))


def _load(args: argparse.Namespace) -> Result:
    text = None if args.no_call else args.text
    with _source(args, speech_tokens=args.tokens) as source:
        return loading.run(source, loading.Settings(args.device, args.repeats, text, args.seed, args.dtype))


def _startup(args: argparse.Namespace) -> Result:
    with _source(args, speech_tokens=args.tokens) as source:
        return startup.run(source, startup.Settings(args.device, args.repeats, args.text, args.calls, args.seed))


def _soak(args: argparse.Namespace) -> Result:
    with _source(args, speech_tokens=args.tokens) as source:
        return soak.run(source, soak.Settings(args.device, args.calls, args.seed))


def _overhead(args: argparse.Namespace) -> Result:
    return overhead.run(overhead.Settings(args.repeats, args.blocks))


def _report(args: argparse.Namespace) -> Result:
    settings = report.Settings(
        device=args.device,
        repeats=args.repeats,
        texts=args.texts,
        voice_runs=args.voice_runs,
        batch=not args.no_batch,
        first_call=not args.no_call,
        soak_calls=args.soak_calls,
        seed=args.seed,
    )
    with _source(args, speech_tokens=args.tokens) as source:
        return report.run(source, settings)


def arguments(argv: Sequence[str]) -> list[str]:
    """``bench --report`` is ``bench report``, wherever the option stands."""
    given = list(argv)
    if given[:1] == ["bench"] and "--report" in given:
        given.remove("--report")
        given.insert(1, "report")
    return given


def add(bench: argparse.ArgumentParser, model: argparse.ArgumentParser, output: argparse.ArgumentParser) -> None:
    """Add every subject to the command; ``model`` has the options that say what is measured, and ``output`` its own."""
    names = "t3 | flow | vocoder | voice | load | startup | e2e | batch | soak | overhead | report"
    bench.description = "Measure stock against compiled. `bench --report` is `bench report`."
    subjects = bench.add_subparsers(required=True, metavar=names)
    written = argparse.ArgumentParser(add_help=False)
    written.add_argument("--out", dest="save", type=Path, metavar="FILE", help="write the JSON here too")
    written.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables here too")
    written.add_argument("--html", type=Path, metavar="FILE", help="write a page with tables and plots here too")
    written.set_defaults(folder=None)
    files = argparse.ArgumentParser(add_help=False, parents=[model, written])
    repeated = argparse.ArgumentParser(add_help=False)
    about = f"of every side; default: 5, and fewer than {FEWEST} have no intervals"
    repeated.add_argument("--repeats", type=at_least(1), default=5, metavar="N", help=about)
    measured = [files, repeated]

    command = subjects.add_parser("t3", parents=measured, help="the token loop")
    command.add_argument("--tokens", type=at_least(8), default=64, metavar="N", help="speech tokens; default: 64")
    command.add_argument("--text", default=TEXT)
    command.add_argument("--no-memory", action="store_true", help=_NO_MEMORY)
    command.set_defaults(measure=_t3)

    for subject, about in (("flow", "speech tokens to mel frames"), ("vocoder", "mel frames to a wave")):
        command = subjects.add_parser(subject, parents=measured, help=about)
        command.add_argument("--tokens", type=at_least(8), default=125, metavar="N", help="speech tokens; default: 125")
        command.set_defaults(measure=_synthesis, subject=subject)

    command = subjects.add_parser("e2e", parents=measured, help="the whole generate")
    _tokens(command, 125)
    command.add_argument("--text", default=TEXT)
    about = "speak texts of so many characters instead: work for a second of speech, by length"
    command.add_argument("--lengths", type=at_least(1), nargs="+", metavar="N", help=about)
    command.add_argument("--no-memory", action="store_true", help=_NO_MEMORY)
    command.set_defaults(measure=_e2e, subject="e2e")

    command = subjects.add_parser("batch", parents=measured, help="many texts at once")
    command.add_argument("--chunks", type=at_least(1), default=8, metavar="N", help="texts; default: 8")
    command.add_argument(
        "--chars",
        type=at_least(1),
        nargs=2,
        default=(60, 120),
        metavar=("FROM", "TO"),
        help="characters of a text; default: 60 120",
    )
    command.add_argument("--sizes", type=at_least(1), nargs="+", metavar="N", help="texts at a time; default: 1 2 4 8")
    command.add_argument("--no-stock", action="store_true", help="leave stock out, which takes longest")
    _tokens(command, 150)
    command.set_defaults(measure=_batch)

    command = subjects.add_parser("voice", parents=measured, help="the reference voice, in fresh processes")
    command.add_argument("--seconds", type=_seconds, default=10.0, metavar="S", help="of the reference; default: 10")
    command.set_defaults(measure=_voice)

    command = subjects.add_parser("load", parents=measured, help="imports, checkpoint, first call, in fresh processes")
    _tokens(command, 60)
    command.add_argument("--text", default=loading.TEXT, help=f"of the first call; default: {loading.TEXT}")
    command.add_argument("--no-call", action="store_true", help="leave the first call out")
    about = "of T3's weights on the compiled side; default: model"
    command.add_argument("--dtype", choices=("model", *DTYPES), default="model", help=about)
    command.set_defaults(measure=_load)

    command = subjects.add_parser("startup", parents=measured, help="the first call of fresh processes, and its cache")
    _tokens(command, 60)
    command.add_argument("--text", default=loading.TEXT, help=f"of every call; default: {loading.TEXT}")
    about = "in a process, after the first; default: 3"
    command.add_argument("--calls", type=at_least(1), default=startup.Settings.calls, metavar="N", help=about)
    command.set_defaults(measure=_startup)

    command = subjects.add_parser("soak", parents=[files], help="many calls: whether anything grows or slows down")
    command.add_argument("--calls", type=at_least(soak.ROUND + 1), default=500, metavar="N", help="default: 500")
    _tokens(command, 30)
    command.set_defaults(measure=_soak)

    command = subjects.add_parser("overhead", parents=[output, written], help="what a timed block costs, with limits")
    command.add_argument("--repeats", type=at_least(1), default=21, metavar="N", help="default: 21")
    command.add_argument("--blocks", type=at_least(1), default=2_000, metavar="N", help="a repeat; default: 2000")
    command.set_defaults(measure=_overhead)

    command = subjects.add_parser("report", parents=[model, repeated], help="every table of the reference report")
    about = "for report.md, report.json and report.html; default: bench-report"
    command.add_argument("--out", dest="folder", type=Path, default=Path("bench-report"), metavar="DIR", help=about)
    about = "of the six chunks, how many are spoken, from 3; default: 3"
    command.add_argument("--texts", type=at_least(3), default=report.Settings.texts, metavar="N", help=about)
    about = "runs of voice encoding; default: 10"
    command.add_argument("--voice-runs", type=at_least(1), default=report.Settings.voice_runs, metavar="N", help=about)
    command.add_argument("--no-batch", action="store_true", help="leave generate_batch out")
    command.add_argument("--no-call", action="store_true", help="leave the first call of fresh processes out")
    about = "further calls for the stability table, 0 for none; default: 36"
    command.add_argument("--soak-calls", type=at_least(0), default=report.Settings.soak_calls, metavar="N", help=about)
    _tokens(command, 125)
    command.set_defaults(measure=_report, save=None, markdown=None, html=None)


def _tokens(command: argparse.ArgumentParser, default: int) -> None:
    about = f"about where a synthetic model stops after 90 characters; default: {default}"
    command.add_argument("--tokens", type=at_least(8), default=default, metavar="N", help=about)


def at_least(least: int) -> Any:
    """A type of argument."""

    def whole(text: str) -> int:
        number = int(text)
        if number < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}")
        return number

    whole.__name__ = "whole number"  # argparse's message names the type
    return whole


def _seconds(text: str) -> float:
    number = float(text)
    if not 1 <= number <= 600:
        raise argparse.ArgumentTypeError("must be from 1 to 600")
    return number
