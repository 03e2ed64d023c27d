"""What was asked, what ran, and the proof."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from .fallback import FallbackEvent
from .utils.tables import format_table


@dataclass(frozen=True)
class ComponentReport:
    """One component's row.

    Attributes:
        asked: the policy's execution.
        ran: ``"stock"``, ``"eager"``, ``"inductor"`` or ``"cuda_graph"``: what the counts prove, not what was
            planned. A compiled component counts as compiled only while all its calls were.
        calls: steps (T3) or calls that the component was asked for.
        compiled_calls: those counted inside compiled code or by replayed CUDA graphs.
        graphs: graphs that torch compiled for it, and CUDA graphs that were recorded.
        graph_breaks: graph breaks while doing so.
        recompiles_after_warmup: graphs compiled or recorded after the warm-up, or after the first utterance where
            there was none.
        fallbacks: every event, oldest first.
        note: a sentence where the row needs one.
    """

    asked: str
    ran: str
    calls: int = 0
    compiled_calls: int = 0
    graphs: int = 0
    graph_breaks: int = 0
    recompiles_after_warmup: int = 0
    fallbacks: tuple[FallbackEvent, ...] = ()
    note: str = ""

    def meanwhile(self, asked: str) -> ComponentReport:
        """The same for as long as another process compiles what was asked for."""
        if asked == self.asked:
            return self
        return replace(self, asked=asked, note="; ".join(filter(None, [self.note, "another process is compiling"])))

    def after(self, earlier: ComponentReport, when: str) -> ComponentReport:
        """The same, with a word about what ran before the component was exchanged, and its events."""
        notes = [self.note, f"{earlier.calls} calls ran {earlier.ran} {when}" if earlier.calls else ""]
        return replace(self, fallbacks=earlier.fallbacks + self.fallbacks, note="; ".join(filter(None, notes)))


@dataclass(frozen=True)
class ExecutionReport:
    """What ran so far; ``str()`` is a table, :meth:`to_dict` is JSON-able."""

    attached: bool
    components: dict[str, ComponentReport]

    def to_dict(self) -> dict[str, Any]:
        """``{"attached": bool, "components": {name: {...}}}`` of plain values."""
        return {"attached": self.attached, "components": {k: asdict(v) for k, v in self.components.items()}}

    def __str__(self) -> str:
        columns = ("asked", "ran", "calls", "compiled_calls", "graphs", "graph_breaks", "recompiles_after_warmup")
        titles = ("component", "asked", "ran", "calls", "compiled", "graphs", "breaks", "recompiles")
        rows = [(name, *(str(getattr(row, c)) for c in columns)) for name, row in self.components.items()]
        table = format_table([titles, *rows])
        notes = [f"{name}: {row.note}" for name, row in self.components.items() if row.note]
        notes += [
            f"{event.component}: {event.phase} failed: {event.error}; {event.action}"
            for row in self.components.values()
            for event in row.fallbacks
        ]
        return "\n".join([table, *notes])


@dataclass(frozen=True)
class WarmupReport:
    """What a warm-up did; ``str()`` is a table.

    Attributes:
        seconds: of compiling, or of finding what was compiled before, for each component.
        graphs: that torch compiled, or that were recorded, for each component, in this process so far.
        texts: how many were spoken, or begun.
        speaking: seconds of that.
        total: all seconds.
    """

    seconds: dict[str, float]
    graphs: dict[str, int]
    texts: int = 0
    speaking: float = 0.0
    total: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "total", sum(self.seconds.values()) + self.speaking)

    def __str__(self) -> str:
        rows = [(name, f"{s:.1f}", str(self.graphs[name])) for name, s in self.seconds.items()]
        rows.append((f"speaking {self.texts} texts", f"{self.speaking:.1f}", ""))
        return format_table([("component", "seconds", "graphs"), *rows])
