"""Measures every table of the reference report on this machine: ``python benchmarks/reference_report --help``."""

from __future__ import annotations

import argparse
from pathlib import Path

from measure import Settings, run
from tts_compile.bench import plots
from tts_compile.bench.models import checkpoint, quiet
from tts_compile.cli import bench, options


def main(argv: list[str] | None = None) -> int:
    """Measures, prints the tables and writes ``report.md``, ``report.json`` and ``report.html``."""
    parser = argparse.ArgumentParser(description=__doc__, parents=[options.of_model()])
    parser.add_argument("--out", type=Path, default=Path("bench-report"), metavar="DIR", help="default: bench-report")
    options.add(parser, Settings)
    args = parser.parse_args(argv)
    plots.require()
    args.out.mkdir(parents=True, exist_ok=True)
    settings = options.read(args, Settings)
    with quiet(), checkpoint(args.model, args.size, args.seed, settings.tokens, args.checkpoint_dir) as source:
        result = run(source, settings)
    args.save, args.markdown, args.html = (args.out / f"report.{end}" for end in ("json", "md", "html"))
    bench.save(result, args)
    print(result, flush=True)
    return 0 if result.passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
