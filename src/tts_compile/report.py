"""Reports: the requested execution of each component, the execution that ran, and the counts that prove it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from .fallback import FallbackEvent
from .utils.tables import format_table


@dataclass(frozen=True)
class ComponentReport:
    """The row of one component.

    Attributes:
        asked: the policy's execution.
        ran: ``"stock"``, ``"eager"``, ``"inductor"`` or ``"cuda_graph"``, by the counts. A component counts as compiled
            only while all its calls ran compiled.
        calls: number of steps (T3) or calls.
        compiled_calls: number of calls counted inside compiled code or by replayed CUDA graphs.
        graphs: number of graphs that torch compiled for it, and of captured CUDA graphs.
        graph_breaks: number of graph breaks in them.
        recompiles_after_warmup: number of graphs compiled or captured after the warm-up or, without a warm-up, after
            the first utterance.
        fallbacks: every event, oldest first.
        note: a sentence that explains the row, or an empty string.
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

    def while_compiling(self, asked: str) -> ComponentReport:
        """Returns the row with the requested execution, for the time in which another process compiles it."""
        if asked == self.asked:
            return self
        return replace(self, asked=asked, note="; ".join(filter(None, [self.note, "another process is compiling"])))

    def after(self, earlier: ComponentReport, when: str) -> ComponentReport:
        """Returns the row with the events of the component that this one has replaced, and a note on its calls."""
        notes = [self.note, f"{earlier.calls} calls ran {earlier.ran} {when}" if earlier.calls else ""]
        return replace(self, fallbacks=earlier.fallbacks + self.fallbacks, note="; ".join(filter(None, notes)))


@dataclass(frozen=True)
class ExecutionReport:
    """The executions so far; ``str()`` is a table, :meth:`to_dict` is JSON-able."""

    attached: bool
    components: dict[str, ComponentReport]

    def to_dict(self) -> dict[str, Any]:
        """Returns ``{"attached": bool, "components": {name: {...}}}`` of plain values."""
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
    """The times and graphs of a warm-up; ``str()`` is a table.

    Attributes:
        seconds: time for compiling each component, or for loading its compiled code.
        graphs: number of graphs compiled or captured for each component in this process so far.
        texts: number of texts that were synthesized, at least their beginning.
        speaking: seconds for those texts.
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
