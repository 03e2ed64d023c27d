"""Importing the library is cheap, so that a program may import it and never use it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

SCRIPT = """
import json, sys, time
import torch
before = time.perf_counter()
import tts_compile
seconds = time.perf_counter() - before
print(json.dumps({"seconds": seconds, "modules": sorted(sys.modules)}))
"""


def imported() -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_is_cheap_and_pulls_in_no_model_code() -> None:
    runs = [imported()]
    modules = runs[0]["modules"]
    assert not {"chatterbox", "transformers", "librosa", "diffusers"} & {name.split(".")[0] for name in modules}
    assert "torch._inductor.config" not in modules
    while min(run["seconds"] for run in runs) > 0.3 and len(runs) < 3:  # the best of three: others share the machine
        runs.append(imported())
    assert min(run["seconds"] for run in runs) <= 0.3


def test_public_names_exist() -> None:
    import tts_compile

    assert [name for name in tts_compile.__all__ if not hasattr(tts_compile, name)] == []
    assert sorted(tts_compile.__all__) == tts_compile.__all__
