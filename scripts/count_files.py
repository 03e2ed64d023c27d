"""Prints which files of ``tts_compile`` one ``compile_model`` and one warm ``generate`` on a CPU run through.

A file counts when any of its functions runs; the import of a module does not count. The library that is measured is
the one that Python imports: ``PYTHONPATH=path/to/src python scripts/count_files.py`` measures another tree.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import tts_compile
from tts_compile import testing

_PACKAGE = str(Path(tts_compile.__file__).parent) + "/"
_TEXT = "Speech, from a model that is small and quick."


@contextlib.contextmanager
def files_run() -> Iterator[set[str]]:
    """Collects the package's files whose functions run inside the block, in any thread that starts there too."""
    found: set[str] = set()

    def profile(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(_PACKAGE) and code.co_name != "<module>":
            found.add(code.co_filename.removeprefix(_PACKAGE))

    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        yield found
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]  # None is documented


def measure(checkpoint: str, cache_dir: str) -> dict[str, list[str]]:
    """Returns the files by what ran: ``compile_model``, and a warm ``generate``."""
    tts = testing.load_checkpoint(checkpoint)
    config = tts_compile.CompileConfig.exact().replace(cache_dir=cache_dir)

    def attach() -> Any:
        return tts_compile.compile_model(tts, config)

    with attach() as fast:  # imports every module, builds the C++ code and compiles every shape of this text
        fast.warmup([_TEXT])
        fast.generate(_TEXT)
    with files_run() as attached:
        fast = attach()
    for _ in range(2):
        fast.generate(_TEXT)
    with files_run() as spoken:
        fast.generate(_TEXT)
    ran = {name: row.ran for name, row in fast.report().components.items()}
    fast.restore()
    if "inductor" not in ran.values():
        raise SystemExit(f"nothing was compiled, so these are not the files of a compiled call: {ran}")
    return {"compile_model": sorted(attached), "generate": sorted(spoken)}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--checkpoint-dir", help="use this synthetic checkpoint; made there if it is missing")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="count-files-") as folder:
        checkpoint = Path(args.checkpoint_dir or f"{folder}/checkpoint")
        if not (checkpoint / "tokenizer.json").is_file():
            testing.write_checkpoint(checkpoint)
        found = measure(str(checkpoint), f"{folder}/cache")
    if args.json:
        print(json.dumps(found, indent=2))
        return
    print(f"{_PACKAGE}, tts-compile {tts_compile.__version__}")
    for name, files in found.items():
        print(f"\n{name}: {len(files)} files")
        print("\n".join(f"  {file}" for file in files))


if __name__ == "__main__":
    main()
