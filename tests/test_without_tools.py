"""New processes: without a compiler, with a cache that cannot be written to, and with a voice to read first."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tts_compile as tc

PROGRAM = """
import json, sys
import numpy, torch
import tts_compile as tc

checkpoint, recording = sys.argv[1:]
tts = tc.testing.load_checkpoint(checkpoint)
off, auto = tc.CompileConfig.off(), tc.ComponentPolicy()
with tc.compile_model(tts, off.replace(reference=auto, voice_encoder=auto, watermark=auto)):
    before, voice = set(sys.modules), tts.conds
    tts.prepare_conditionals(recording)
    tts.watermarker.apply_watermark(numpy.ones(24000, dtype=numpy.float32), 24000)
    imported = [name for name in set(sys.modules) - before if name.startswith(("librosa", "numba", "sklearn"))]
    tts.conds = voice
torch.manual_seed(0)
stock = tts.generate("A")
with tc.compile_model(tts, tc.CompileConfig(warmup_samples=0)) as fast:
    fast.warmup()
    torch.manual_seed(0)
    wave = fast.generate("A")
    report = fast.report().to_dict()
error = (wave - stock).double().pow(2).sum() / stock.double().pow(2).sum() if wave.shape == stock.shape else 1
print(json.dumps({"error": float(error), "report": report, "imported": sorted(imported)}))
"""


@pytest.mark.parametrize("lacking", ["compiler", "cache"])
def test_a_new_process_speaks_as_stock_does(checkpoint: Path, tmp_path: Path, lacking: str) -> None:
    changes = {
        "compiler": {"PATH": str(tmp_path), "CXX": "", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")},
        "cache": {"TORCHINDUCTOR_CACHE_DIR": "/proc/no-such-folder"},  # where not even root can make a folder
    }[lacking]
    recording = tc.testing.make_reference_wav(tmp_path / "voice.wav", seconds=0.5)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(checkpoint), str(recording)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **changes},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert found["imported"] == []  # the first voice of a process waits for no library
    assert found["error"] < 1e-6  # 60 dB
    for name in ("t3", "flow", "vocoder"):
        row = found["report"]["components"][name]
        assert row["ran"] == "eager"
        assert row["calls"] > 0
        assert {event["phase"] for event in row["fallbacks"]} == {"compile"}, row
