"""The command ``tts-compile``."""

from __future__ import annotations

import argparse
import contextlib
import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from .._version import __version__
from ..api import compile_model
from ..bench.models import SYNTHETIC, checkpoint, load, load_quickly, quiet
from ..bench.result import as_json
from ..cache import save_compile_cache
from ..errors import TTSCompileError
from ..measuring import proof
from ..measuring.progress import Progress
from ..tuning import tune
from ..utils.files import refuse_unwritable
from . import bench as bench_commands
from . import demo, doctor, options

_SPEECH_TOKENS = 60  # of a synthetic model


class _Outcome(NamedTuple):
    """The result of a command.

    Attributes:
        table: for people.
        plain: for programs.
        success: decides on the exit code.
        save: writes files, once the result is shown.
        shortfalls: sentences about what did not run as asked, printed to stderr.
    """

    table: str
    plain: Mapping[str, Any]
    success: bool
    save: Callable[[], None] = lambda: None
    shortfalls: Sequence[str] = ()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; 0 means success, 1 a failure that the message explains, 2 a wrong command line."""
    parser = _parser()
    args = parser.parse_args(argv)
    if getattr(args, "checkpoint_dir", None) is not None and args.model != SYNTHETIC:
        parser.error("--checkpoint-dir is for --model synthetic; a folder is loaded with --model FOLDER")
    try:
        with quiet():
            outcome: _Outcome = args.run(args)
        try:
            _show(outcome, args)
        finally:  # the reader of the output may be gone
            outcome.save()
    except (TTSCompileError, OSError) as error:
        print(f"tts-compile: {error}", file=sys.stderr)
        return 1
    for line in outcome.shortfalls:
        print(f"tts-compile: {line}", file=sys.stderr)
    return 0 if outcome.success and not outcome.shortfalls else 1


def _show(outcome: _Outcome, args: argparse.Namespace) -> None:
    print(as_json(outcome.plain) if args.json else outcome.table, flush=True)


@contextlib.contextmanager
def _loaded(args: argparse.Namespace, load: Callable[[str, str], Any]) -> Iterator[tuple[Any, Progress]]:
    """Yields the model that the command line asks for, and the progress of the command."""
    with _checkpoint(args) as source, Progress() as progress:
        progress("loading")
        yield load(source, args.device), progress


def _checkpoint(args: argparse.Namespace) -> AbstractContextManager[str]:
    return checkpoint(args.model, args.size, args.seed, _SPEECH_TOKENS, args.checkpoint_dir)


def _demo(args: argparse.Namespace) -> _Outcome:
    with _checkpoint(args) as source:
        result = demo.run(source, options.read(args, demo.Settings), args.out)
    return _Outcome(str(result), result.to_dict(), result.passed, shortfalls=result.shortfalls)


def _bench(args: argparse.Namespace) -> _Outcome:
    result = bench_commands.run(args)
    save = functools.partial(bench_commands.save, result, args)
    return _Outcome(str(result), result.to_dict(), result.passed, save, result.shortfalls)


def _validate(args: argparse.Namespace) -> _Outcome:
    with _loaded(args, load) as (tts, progress), compile_model(tts) as fast:
        asked = {"seed": args.seed, "recording": args.recording, "transcribe": args.words}
        result = fast.validate(args.text, step=progress, **asked)
        found = proof.shortfalls(fast.report().to_dict(), called=proof.ALL)
    passed = result.passed and not found
    return _Outcome(str(result), {**result.to_dict(), "passed": passed, "shortfalls": found}, passed, shortfalls=found)


def _autotune(args: argparse.Namespace) -> _Outcome:
    asked = {name: getattr(args, name) for name in ("budget", "repeats", "seed", "recording", "refresh")}
    with _loaded(args, load) as (tts, progress):
        result = tune(tts, args.text, step=progress, **asked)
    return _Outcome(str(result), result.to_dict(), True)


def _warmup(args: argparse.Namespace) -> _Outcome:
    if args.save is not None:
        refuse_unwritable(args.save)
    with _loaded(args, load_quickly) as (tts, progress), compile_model(tts) as fast:
        result = fast.warmup(args.text, progress=progress)
        found = proof.shortfalls(fast.report().to_dict(), called=())
    if found or args.save is None:
        return _Outcome(str(result), asdict(result), not found, shortfalls=found)
    saved = save_compile_cache(args.save, fast.config.cache_dir)
    line = f"{saved.files} files, {saved.bytes / 2**20:.1f} MiB of compiled code, are in {saved.path}"
    return _Outcome(f"{result}\n\n{line}", {**asdict(result), "saved": asdict(saved)}, True)


def _doctor(_: argparse.Namespace) -> _Outcome:
    found = doctor.examine()
    return _Outcome(str(found), found.to_dict(), not found.problems)


def _parser() -> argparse.ArgumentParser:
    output = argparse.ArgumentParser(add_help=False)
    output.add_argument("--json", action="store_true", help="print JSON instead of tables")
    model = options.of_model(parents=[output])
    parser = argparse.ArgumentParser(prog="tts-compile", description="Makes Chatterbox fast, exactly and provably.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(required=True, metavar="demo | bench | validate | autotune | warmup | doctor")

    command = commands.add_parser("demo", parents=[model], help="speak one text with stock and compiled")
    command.add_argument("--text", default=demo.TEXT)
    command.add_argument("--out", type=Path, default=Path("demo-output"), metavar="DIR", help="for the two wave files")
    command.set_defaults(run=_demo)

    bench = commands.add_parser("bench", help="measure stock against compiled")
    bench_commands.add(bench, model, output)
    bench.set_defaults(run=_bench)

    spoken = argparse.ArgumentParser(add_help=False, parents=[model])
    spoken.add_argument("--text", action="append", help="speak this text instead; may be repeated")
    spoken.add_argument(
        "--recording", type=Path, metavar="FILE", help="recording of a voice, in place of a synthetic one"
    )

    command = commands.add_parser("validate", parents=[spoken], help="compare with stock: components, tokens, waves")
    command.add_argument(
        "--no-words", dest="words", action="store_false", help="leave out the speech recogniser, if there is one"
    )
    command.set_defaults(run=_validate)

    command = commands.add_parser(
        "autotune",
        parents=[spoken],
        help="choose policies by measuring, and store the choice",
        description="The choice is read again by compile_model(tts, tts_compile.autotune(tts)).",
    )
    command.add_argument("--budget", type=float, metavar="S", help="seconds after which nothing new is tried")
    command.add_argument("--repeats", type=int, default=5, metavar="N", help="of every policy; default: 5")
    command.add_argument("--refresh", action="store_true", help="measure again where a choice is stored")
    command.set_defaults(run=_autotune)

    command = commands.add_parser(
        "warmup",
        parents=[model],
        help="compile everything into the cache",
        description="Pass the --model and --size that will be used: another size needs other code. "
        "Exits with 1 where compiling fails.",
    )
    command.add_argument("--text", action="append", help="speak this text too; may be repeated")
    command.add_argument(
        "--save",
        type=Path,
        metavar="FILE",
        help="write compiled code to this file too, for tts_compile.load_compile_cache",
    )
    command.set_defaults(run=_warmup)

    command = commands.add_parser("doctor", parents=[output], help="versions, devices, and what will run and why")
    command.set_defaults(run=_doctor)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
