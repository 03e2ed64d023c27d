"""Measures every table of the reference report on this machine: ``python benchmarks/reference_report --help``."""

from __future__ import annotations

import argparse
from pathlib import Path

from measure import Settings, run
from tts_compile.bench import page, plots
from tts_compile.bench.models import SYNTHETIC, checkpoint, quiet
from tts_compile.bench.result import as_json, markdown
from tts_compile.cli import options
from tts_compile.testing import SIZES
from tts_compile.utils.files import replaced


def main(argv: list[str] | None = None) -> int:
    """Measures, prints the tables and writes ``report.md``, ``report.json`` and ``report.html``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=SYNTHETIC, metavar="synthetic|pretrained|FOLDER")
    parser.add_argument("--size", choices=SIZES, default="small", help="of a synthetic model; default: small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint-dir", type=Path, metavar="DIR", help="keep the synthetic model in this folder")
    parser.add_argument("--out", type=Path, default=Path("bench-report"), metavar="DIR", help="default: bench-report")
    options.add(parser, Settings)
    args = parser.parse_args(argv)
    plots.require()
    args.out.mkdir(parents=True, exist_ok=True)
    settings = options.read(args, Settings)
    with quiet(), checkpoint(args.model, args.size, args.seed, settings.tokens, args.checkpoint_dir) as source:
        result = run(source, settings)
    files = {
        "json": as_json(result.to_dict()) + "\n",
        "md": markdown(result.shown(), result.title) + "\n",
        "html": page.render(result),
    }
    for end, content in files.items():
        with replaced(args.out / f"report.{end}") as beside:
            beside.write_text(content, encoding="utf-8")
    print(result, flush=True)
    return 0 if result.passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
