"""Measuring in a fresh process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import TTSCompileError
from ..timing.blocks import Stopwatch

_MARK = "@ "


@dataclass(frozen=True)
class Child:
    """What a process found, and when, in seconds after it was started, it set each mark."""

    found: dict[str, Any]
    marks: dict[str, float]


def run(arguments: Sequence[str], failing: str, environment: Mapping[str, str] | None = None) -> Child:
    """Start Python with ``arguments`` and wait for the JSON object that it prints last.

    Args:
        arguments: of the interpreter.
        failing: what has failed, for the error's message, where it does.
        environment: variables in addition to this process's.

    Raises:
        TTSCompileError: when the process fails; it quotes the last line of its error output.
    """
    marks: dict[str, float] = {}
    last = ""
    # A file, since a pipe that nobody reads would stop the process once it is full.
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors, Stopwatch() as watch:
        child = subprocess.Popen(
            [sys.executable, *arguments],
            stdout=subprocess.PIPE,
            stderr=errors,
            encoding="utf-8",
            env={**os.environ, **(environment or {})},
        )
        with child:
            try:
                for line in child.stdout or ():
                    if line.startswith(_MARK):
                        marks[line.removeprefix(_MARK).strip()] = watch.seconds
                    else:
                        last = line
            except BaseException:
                child.kill()
                raise
        if child.returncode != 0:
            errors.seek(0)
            reason = (errors.read().strip().splitlines() or ["no message"])[-1]
            raise TTSCompileError(f"{failing} failed: {reason}")
    return Child(json.loads(last), marks)


def mark(name: str) -> str:
    """What a process prints, and flushes, to set a mark."""
    return f"{_MARK}{name}"
