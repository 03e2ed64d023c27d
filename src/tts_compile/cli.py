"""The command ``tts-compile``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from . import __version__, demo, doctor
from .api import compile_model
from .bench import batch as bench_batch
from .bench import overhead as bench_overhead
from .bench import soak as bench_soak
from .bench import synthesis as bench_synthesis
from .bench import t3 as bench_t3
from .bench import voice as bench_voice
from .bench.models import SYNTHETIC, Progress, checkpoint, load, quiet
from .errors import TTSCompileError
from .files import replaced
from .testing import SIZES


class _Outcome(NamedTuple):
    """What a command hands back to be shown."""

    table: str
    plain: dict[str, Any]
    success: bool


_NO_MEMORY = "leave out the memory of two fresh processes"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 means success, 1 a failure that the message explains, 2 a wrong command line."""
    parser = _parser()
    args = parser.parse_args(argv)
    if getattr(args, "checkpoint_dir", None) is not None and args.model != SYNTHETIC:
        parser.error("--checkpoint-dir is for --model synthetic; a folder is loaded with --model FOLDER")
    try:
        with quiet():
            outcome: _Outcome = args.run(args)
        _show(outcome, args)
    except (TTSCompileError, OSError) as error:
        print(f"tts-compile: {error}", file=sys.stderr)
        return 1
    return 0 if outcome.success else 1


def _show(outcome: _Outcome, args: argparse.Namespace) -> None:
    plain = json.dumps(outcome.plain, indent=2, allow_nan=False)
    print(plain if args.json else outcome.table)
    path = getattr(args, "save", None)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced(path) as beside:
            beside.write_text(plain + "\n", encoding="utf-8")


def _demo(args: argparse.Namespace) -> _Outcome:
    with _checkpoint(args, speech_tokens=60) as source:
        result = demo.run(source, args.device, args.text, args.seed, args.out)
    return _Outcome(str(result), result.to_dict(), result.passed)


def _bench_t3(args: argparse.Namespace) -> _Outcome:
    settings = bench_t3.Settings(
        args.device, args.repeats, args.tokens, args.text, seed=args.seed, memory=not args.no_memory
    )
    # Far beyond the tokens asked for, so that nothing stops early.
    with _checkpoint(args, speech_tokens=min(max(4 * args.tokens, 200), 1000)) as source:
        result = bench_t3.run(source, settings)
    return _Outcome(str(result), result.to_dict(), result.passed)


def _bench_synthesis(args: argparse.Namespace) -> _Outcome:
    settings = bench_synthesis.Settings(
        args.subject,
        args.device,
        args.repeats,
        args.tokens,
        getattr(args, "text", bench_synthesis.TEXT),
        args.seed,
        memory=not getattr(args, "no_memory", True),
    )
    with _checkpoint(args, speech_tokens=args.tokens) as source:
        result = bench_synthesis.run(source, settings)
    return _Outcome(str(result), result.to_dict(), result.passed)


def _bench_batch(args: argparse.Namespace) -> _Outcome:
    sizes = tuple(args.sizes or bench_batch.Settings.sizes)
    shortest, longest = sorted(args.chars)
    settings = bench_batch.Settings(
        args.device, args.repeats, args.chunks, shortest, longest, sizes, args.seed, stock=not args.no_stock
    )
    with _checkpoint(args, speech_tokens=args.tokens) as source:
        result = bench_batch.run(source, settings)
    return _Outcome(str(result), result.to_dict(), result.passed)


def _bench_voice(args: argparse.Namespace) -> _Outcome:
    with _checkpoint(args, speech_tokens=60) as source:
        result = bench_voice.run(source, bench_voice.Settings(args.device, args.repeats, args.seconds))
    return _Outcome(str(result), result.to_dict(), result.passed)


def _bench_soak(args: argparse.Namespace) -> _Outcome:
    with _checkpoint(args, speech_tokens=args.tokens) as source:
        result = bench_soak.run(source, bench_soak.Settings(args.device, args.calls, args.seed))
    return _Outcome(str(result), result.to_dict(), result.passed)


def _bench_overhead(args: argparse.Namespace) -> _Outcome:
    result = bench_overhead.run(bench_overhead.Settings(args.repeats, args.blocks))
    return _Outcome(str(result), result.to_dict(), result.passed)


def _warmup(args: argparse.Namespace) -> _Outcome:
    with _checkpoint(args, speech_tokens=60) as source, Progress(2) as progress:
        with progress.step("loading"):
            tts = load(source, args.device)
        with progress.step("compiling"), compile_model(tts) as fast:
            result = fast.warmup(args.text)
            events = [event for row in fast.report().components.values() for event in row.fallbacks]
    failed = [event for event in events if event.phase == "compile"]
    for event in failed:
        print(f"tts-compile: {event.component}: {event.error}; {event.action}", file=sys.stderr)
    return _Outcome(str(result), asdict(result), not failed)


def _doctor(_: argparse.Namespace) -> _Outcome:
    found = doctor.examine()
    return _Outcome(str(found), found.to_dict(), not found.problems)


def _checkpoint(args: argparse.Namespace, speech_tokens: int) -> AbstractContextManager[str]:
    return checkpoint(args.model, args.size, args.seed, speech_tokens, args.checkpoint_dir)


def _parser() -> argparse.ArgumentParser:
    output = argparse.ArgumentParser(add_help=False)
    output.add_argument("--json", action="store_true", help="print JSON instead of tables")
    model = argparse.ArgumentParser(add_help=False, parents=[output])
    model.add_argument(
        "--model",
        default=SYNTHETIC,
        metavar="synthetic|pretrained|FOLDER",
        help="random weights in the real architecture (default), the published weights, or a checkpoint folder",
    )
    model.add_argument("--size", choices=SIZES, default="small", help="of a synthetic model; default: small")
    model.add_argument("--seed", type=int, default=0, help="for speaking and for synthetic weights; default: 0")
    model.add_argument("--device", default="cpu", help="where the model runs; default: cpu")
    model.add_argument("--checkpoint-dir", type=Path, metavar="DIR", help="keep, or find, the synthetic model here")

    parser = argparse.ArgumentParser(prog="tts-compile", description="Makes Chatterbox fast, exactly and provably.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(required=True, metavar="demo | bench | warmup | doctor")

    command = commands.add_parser("demo", parents=[model], help="speak one text with stock and compiled")
    command.add_argument("--text", default=demo.TEXT)
    command.add_argument("--out", type=Path, default=Path("demo-output"), metavar="DIR", help="for the two wave files")
    command.set_defaults(run=_demo)

    bench = commands.add_parser("bench", help="measure stock against compiled")
    benches = bench.add_subparsers(required=True, metavar="t3 | flow | vocoder | voice | e2e | batch | soak | overhead")
    saved = argparse.ArgumentParser(add_help=False, parents=[model])
    saved.add_argument("--out", dest="save", type=Path, metavar="FILE", help="write the JSON here too")
    measured = argparse.ArgumentParser(add_help=False, parents=[saved])
    measured.add_argument("--repeats", type=_at_least(1), default=5, metavar="N", help="default: 5")

    command = benches.add_parser("t3", parents=[measured], help="the token loop")
    command.add_argument("--tokens", type=_at_least(8), default=64, metavar="N", help="speech tokens; default: 64")
    command.add_argument("--text", default=bench_t3.TEXT)
    command.add_argument("--no-memory", action="store_true", help=_NO_MEMORY)
    command.set_defaults(run=_bench_t3)

    for subject, about in (
        ("flow", "speech tokens to mel frames"),
        ("vocoder", "mel frames to a wave"),
        ("e2e", "the whole generate"),
    ):
        command = benches.add_parser(subject, parents=[measured], help=about)
        how = "about where a synthetic model stops" if subject == "e2e" else "speech tokens"
        command.add_argument("--tokens", type=_at_least(8), default=125, metavar="N", help=f"{how}; default: 125")
        if subject == "e2e":
            command.add_argument("--text", default=bench_synthesis.TEXT)
            command.add_argument("--no-memory", action="store_true", help=_NO_MEMORY)
        command.set_defaults(run=_bench_synthesis, subject=subject)

    command = benches.add_parser("batch", parents=[measured], help="many texts at once")
    command.add_argument("--chunks", type=_at_least(1), default=8, metavar="N", help="texts; default: 8")
    command.add_argument(
        "--chars",
        type=_at_least(1),
        nargs=2,
        default=(60, 120),
        metavar=("FROM", "TO"),
        help="characters of a text; default: 60 120",
    )
    command.add_argument("--sizes", type=_at_least(1), nargs="+", metavar="N", help="texts at a time; default: 1 2 4 8")
    command.add_argument("--no-stock", action="store_true", help="leave stock out, which takes longest")
    about = "about where a synthetic model stops after 90 characters; default: 150"
    command.add_argument("--tokens", type=_at_least(8), default=150, metavar="N", help=about)
    command.set_defaults(run=_bench_batch)

    command = benches.add_parser("voice", parents=[measured], help="the reference voice, in fresh processes")
    command.add_argument("--seconds", type=_seconds, default=10.0, metavar="S", help="of the reference; default: 10")
    command.set_defaults(run=_bench_voice)

    command = benches.add_parser("soak", parents=[saved], help="many calls: whether anything grows or slows down")
    command.add_argument("--calls", type=_at_least(12), default=500, metavar="N", help="default: 500")
    about = "about where a synthetic model stops after 90 characters; default: 30"
    command.add_argument("--tokens", type=_at_least(8), default=30, metavar="N", help=about)
    command.set_defaults(run=_bench_soak)

    command = benches.add_parser("overhead", parents=[output], help="what timing costs; fails beyond its limits")
    command.add_argument("--out", dest="save", type=Path, metavar="FILE", help="write the JSON here too")
    command.add_argument("--repeats", type=_at_least(1), default=21, metavar="N", help="default: 21")
    command.add_argument("--blocks", type=_at_least(1), default=2_000, metavar="N", help="a repeat; default: 2000")
    command.set_defaults(run=_bench_overhead)

    command = commands.add_parser(
        "warmup",
        parents=[model],
        help="compile everything into the cache",
        description="Give the --model and --size that will speak: another size needs other code. "
        "Fails where compiling fails.",
    )
    command.add_argument("--text", action="append", help="speak this too; may be given more than once")
    command.set_defaults(run=_warmup)

    command = commands.add_parser("doctor", parents=[output], help="versions, devices, and what will run and why")
    command.set_defaults(run=_doctor)
    return parser


def _at_least(least: int) -> Any:
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


if __name__ == "__main__":
    raise SystemExit(main())
