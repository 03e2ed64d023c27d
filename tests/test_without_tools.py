"""Without a compiler, and with a cache that cannot be written to: a new process speaks as stock does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = """
import json, sys
import torch
import tts_compile as tc

tts = tc.testing.load_checkpoint(sys.argv[1])
torch.manual_seed(0)
stock = tts.generate("Hello there my good!")
with tc.compile_model(tts) as fast:
    warm = fast.warmup()
    torch.manual_seed(0)
    wave = fast.generate("Hello there my good!")
    report = fast.report().to_dict()
error = (wave - stock).double().pow(2).sum() / stock.double().pow(2).sum() if wave.shape == stock.shape else 1
print(json.dumps({"error": float(error), "report": report}))
"""


def spoken(checkpoint: Path, **environment: str) -> dict[str, Any]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **environment}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(checkpoint)], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("lacking", ["compiler", "cache"])
def test_it_speaks(checkpoint: Path, tmp_path: Path, lacking: str) -> None:
    if lacking == "compiler":
        changes = {"PATH": str(tmp_path), "CXX": "", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    else:  # where not even root can make a folder
        changes = {"TORCHINDUCTOR_CACHE_DIR": "/proc/no-such-folder"}
    found = spoken(checkpoint, **changes)
    assert found["error"] < 1e-6  # 60 dB
    for name in ("t3", "flow", "vocoder"):
        row = found["report"]["components"][name]
        assert row["ran"] == "eager"
        assert row["calls"] > 0
        assert {event["phase"] for event in row["fallbacks"]} == {"compile"}, row
