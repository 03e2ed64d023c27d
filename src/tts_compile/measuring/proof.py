"""Judges from an execution report whether a model ran compiled."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ..config import switched_off_by_env

COMPILED = ("t3", "flow", "vocoder")
SPEAKING = (*COMPILED, "watermark")  # called by every ``generate``; the other two only when a recording is read
ALL = (*SPEAKING, "voice_encoder", "reference")


def shortfalls(report: Mapping[str, Any], called: Collection[str]) -> list[str]:
    """Returns a sentence for each component that did not run as asked, and for each fallback; empty if none.

    A component whose policy is ``"stock"`` may be stock, unless that holds for all of them. The others must have run
    compiled, or eager where the policy is ``"eager"`` or nothing in the component can be compiled.

    Args:
        report: :meth:`tts_compile.ExecutionReport.to_dict`.
        called: the components that the measured calls must reach; one that is not among them may have no calls.
    """
    rows: Mapping[str, Mapping[str, Any]] = report["components"]
    found = []
    if all(row["asked"] == "stock" for row in rows.values()):
        reason = "TTS_COMPILE switches the library off" if switched_off_by_env() else "every policy is 'stock'"
        found.append(f"nothing ran compiled: {reason}")
    for name, row in rows.items():
        if row["asked"] == "stock":
            continue
        eager = name not in COMPILED or row["asked"] == "eager"
        if not row["calls"]:
            if name in called:
                found.append(f"{name} did not run: no call reached it{_note(row)}")
        elif row["ran"] == "stock" or (row["ran"] == "eager" and not eager):
            found.append(f"{name} did not run compiled: it ran {row['ran']}{_note(row)}")
        found += [f"{name}: {event['phase']} failed: {event['error']}; {event['action']}" for event in row["fallbacks"]]
    return found


def _note(row: Mapping[str, Any]) -> str:
    return f" ({row['note']})" if row.get("note") else ""
