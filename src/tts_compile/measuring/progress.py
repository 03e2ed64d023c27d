"""Progress of a command on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable

from tqdm import tqdm
from typing_extensions import Self

Step = Callable[[str], object]  # called with the name of each step as it begins


class Progress:
    """Named steps on stderr: a bar on a terminal, elsewhere a line as each step begins.

    Args:
        total: number of steps; None if it is not known.
    """

    def __init__(self, total: int | None = None) -> None:
        shown = sys.stderr.isatty()
        self._bar = tqdm(total=total, disable=not shown, leave=False, bar_format="{l_bar}{bar}| {n}/{total}")
        self._begun = False

    def __call__(self, name: str) -> None:
        """Ends the step before and shows the name of the next one."""
        if self._bar.disable:
            print(f"{name} ...", file=sys.stderr, flush=True)
            return
        self._bar.update(int(self._begun))
        self._bar.set_description(name)
        self._begun = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
