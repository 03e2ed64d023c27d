"""Draws the throughput of a ``bench batch`` over the number of texts spoken at a time, in the style of its page.

python scripts/plot_batch.py FILE.json OUT.svg
"""

import json
import sys
from pathlib import Path

from tts_compile.bench import plots
from tts_compile.bench.batch import Side, rates


def main(source, target):
    """Draws the raw values of a result."""
    result = json.loads(Path(source).read_text(encoding="utf-8"))
    sides, by_size = (
        {name: Side(*(side[part] for part in ("total", "t3", "tokens"))) for name, side in result[sides].items()}
        for sides in ("sides", "by_size")
    )
    plot = rates(sides, {int(size): side for size, side in by_size.items()})
    Path(target).write_text(plots.draw(plot), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
