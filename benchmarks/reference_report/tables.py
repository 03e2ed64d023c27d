"""The tables: ours with intervals, the reference report's figures in a column of their own."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import reference
from chunks import CHUNKS
from tts_compile.bench import soak as soaking
from tts_compile.bench.page import proof_rows
from tts_compile.bench.result import SIDES, Row, Section, ran
from tts_compile.bench.stages import STAGES
from tts_compile.measuring.stats import LEVEL, figure, median_of, ratio_of_medians, spread, yes

if TYPE_CHECKING:
    from result import ReportResult

KINDS = {"later": "a new recording each time", "repeated": "the same recording again"}
_COLUMNS = ("stock", "compiled", f"gain ({LEVEL}% interval)", reference.TITLE)


def all_of(result: ReportResult) -> list[Section]:
    """Every section, in the reference report's order."""
    return [
        _summary(result),
        _loading(result),
        _generation(result),
        _voice(result),
        _buckets(result),
        _projection(result),
        _memory(result),
        _settings(result),
        _components(result),
        _stability(result),
        _parameters(result),
        *_raw(result),
    ]


def _with(titles: Sequence[str], rows: Sequence[Row], given: Mapping[str, str], names: Sequence[str]) -> list[Row]:
    """Rows with the reference report's figure last, by a name for each row."""
    return [tuple(titles), *((*row, given.get(name, "")) for row, name in zip(rows, names))]


def _proof(result: ReportResult) -> str:
    return f"{ran(result.report)}; fallback events: {_events(result)}"


def _events(result: ReportResult) -> str:
    return str(sum(len(row["fallbacks"]) for row in result.report["components"].values()))


def _summary(result: ReportResult) -> Section:
    rows: list[Row] = [("", f"gain ({LEVEL}% interval)"), *((name, ratio) for name, ratio in result.gains.items())]
    rows.append((result.promise, yes(result.passed)))
    notes = [
        *result.few,
        "A ratio above 1 means faster than stock; it is called a gain or a loss only where its interval excludes 1. "
        "Stock is in all tables the same model without this library, measured in the same run.",
        f"{result.about}; {_proof(result)}",
    ]
    return Section(rows, notes, "Results")


def _loading(result: ReportResult) -> Section:
    loading = result.loading
    names = [*loading.values, *["cold"] * bool(loading.settings.call), "warmup"]
    warm = result.generation.warmup_seconds
    rows = loading.rows()
    rows.append(("warm-up, nothing compiled yet, s", "", figure(warm), "once for each cache"))
    notes = [
        f"{loading.settings.repeats} fresh processes of each side, alternating; code compiled by an earlier process is "
        "found by the later ones. The reference report does not say "
        "what its loading time includes.",
        ran(loading.report) if loading.settings.call else "These processes made no call, so that nothing ran in them.",
    ]
    title = "a fresh process, median (95% interval)"
    return Section(_with((title, *_COLUMNS), rows, reference.LOADING, names), notes, "Model loading")


def _generation(result: ReportResult) -> Section:
    units = ("characters", "words")
    gain = result.gain("compiled")
    rows: list[Row] = [("time for a chunk, ms", *(spread(result.milliseconds(side)) for side in SIDES), gain)]
    rows += [(f"{unit}/s", *(spread(result.rate(side, unit)) for side in SIDES), gain) for unit in units]
    names = ["milliseconds", *units]
    chunks = zip(result.measured, result.generation.stock, result.generation.compiled)
    for number, (text, stock, compiled) in enumerate(chunks, 1):
        cells = [spread([1000 * seconds for seconds in side.seconds]) for side in (stock, compiled)]
        own = ratio_of_medians(stock.seconds, compiled.seconds, seed=result.settings.seed)
        rows.append((f"chunk {number}, {len(text)} characters, ms", *cells, own))
        names.append(f"chunk {number}")
    factors = [spread(result.generation.factors(side)) for side in SIDES]
    rows.append(("seconds of work for a second of speech", *factors, gain))
    rows += [row for name, row in zip(result.generation.values, result.generation.rows()) if name in STAGES]
    names += [""] * (len(rows) - len(names))
    if result.generation.batch:
        together = spread(result.milliseconds("batch"))
        rows.append(("all chunks at once (generate_batch), a chunk, ms", "", together, result.gain("batch")))
        names.append("batch")
    given = reference.GENERATION | {f"chunk {n}": figure for n, figure in enumerate(reference.CHUNKS, 1)}
    notes = [result.generation.proof, _proof(result)]
    return Section(_with(("median (95% interval)", *_COLUMNS), rows, given, names), notes, "Text generation")


def _voice(result: ReportResult) -> Section:
    voice = result.voice
    rows: list[Row] = []
    names: list[str] = []
    for phase, title in KINDS.items():
        both = [[1000 * seconds for seconds in values] for values in voice.values[phase]]
        rows.append((f"{title}: median (95% interval), ms", *map(spread, both), voice.gains[phase]))
        names.append("")
        for name, function in (("average", statistics.mean), ("least", min), ("most", max)):
            rows.append((f"{title}: {name}, ms", *(figure(function(values)) for values in both), ""))
            names.append(name)
    notes = [
        f"{voice.settings.repeats} fresh processes of each side, whose first call is not counted here, on recordings "
        f"of about {voice.settings.seconds:g} s; every tensor of the voice identical after each call: "
        f"{yes(voice.identical)}. The compiled side reads the result of a known recording from memory. The reference "
        "report does not say whether its 10 runs were of one recording.",
        ran(voice.report),
    ]
    return Section(_with(("prepare_conditionals", *_COLUMNS), rows, reference.VOICE, names), notes, "Voice encoding")


def _buckets(result: ReportResult) -> Section:
    found = result.buckets
    rows: list[Row] = [("chunks", str(found.total))]
    rows += [(f"bucket {name}", f"{count} ({found.shares[name]:.0%})") for name, count in found.counts.items()]
    rows += [
        ("characters", f"{found.shortest} to {found.longest}, {found.mean:.0f} on average"),
        ("different lengths, and shapes after rounding up", f"{found.shapes_before}, {found.shapes_after}"),
        ("padding, if chunks were padded to their bucket", f"{found.padding_waste:.1%}"),
        ("potential, in the reference report's words", found.verdict),
    ]
    names = ["chunks", *found.counts, "characters", "", "", "verdict"]
    notes = ["Counts have no interval. How the engines round lengths up is a matter of their own, finer ladders."]
    return Section(_with(("", "here", reference.TITLE), rows, reference.BUCKETS, names), notes, "Chunk sizes")


def _projection(result: ReportResult) -> Section:
    hours = f"{reference.AUDIOBOOK_HOURS:g} hours"
    instead = [str(result.instead_of(side)) for side in result.spoken_by[1:]]
    rows: list[Row] = [
        (f"{hours} of speech, hours of work", *_cells(result, result.hours)),
        ("hours saved", "", *(str(result.saved_hours(side)) for side in result.spoken_by[1:])),
        (f"what takes stock {hours} of work, hours", f"{reference.AUDIOBOOK_HOURS:g}", *instead),
        ("loading, s a session", *map(spread, result.loading.values["ready"])),
        ("loading, s saved a session", "", str(result.saved_loading)),
    ]
    width = 1 + len(result.spoken_by)
    rows = [row + ("",) * (width - len(row)) for row in rows]
    notes = [
        "From the real-time factors above, whose intervals are carried through; it takes for granted that a book's "
        "chunks are like these, and that the machine keeps its speed for hours.",
        _proof(result),
    ]
    names = ["", "", "generation", "", "loading"]
    titles = ("median (95% interval)", *result.spoken_by, reference.TITLE)
    heading = f"Projection for an audiobook of {hours}"
    return Section(_with(titles, rows, reference.PROJECTION, names), notes, heading)


def _cells(result: ReportResult, values: Any) -> tuple[str, ...]:
    return tuple(str(median_of(values(side))) for side in result.spoken_by)


def _memory(result: ReportResult) -> Section:
    loading = result.loading
    names = [name for name in loading.units if name in loading.values]
    rows = [row for name, row in zip(loading.values, loading.rows()) if name in names]
    notes = [
        "Peak resident memory of the fresh processes of the loading table, GiB; the reference report's figure is of "
        "the GPU's memory.",
    ]
    return Section(_with(("median (95% interval)", *_COLUMNS), rows, reference.LOADING, names), notes, "Memory")


def _settings(result: ReportResult) -> Section:
    rows: list[Row] = [(name, _listed(value)) for name, value in result.config.items() if value is not None]
    names = [str(name) for name, _ in rows]
    notes = ["What is not named is left to the library, or off."]
    return Section(_with(("setting", "here", reference.TITLE), rows, reference.SETTINGS, names), notes, "Settings")


def _listed(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {found}" for name, found in value.items() if found is not None)
    return str(value)


def _components(result: ReportResult) -> Section:
    components = result.report["components"]
    (*titles,), *rows = proof_rows(result.report)
    titles.append(reference.TITLE)
    notes = ["Calls and compiled calls are counted; the latter inside the compiled code itself."]
    notes += [f"{name}: {row['note']}" for name, row in components.items() if row["note"]]
    return Section(_with(titles, rows, reference.COMPONENTS, list(components)), notes, "Components compiled")


def _stability(result: ReportResult) -> Section:
    texts, found = result.generation, result.soak
    repeated = sum(text.identical for text in texts.compiled)
    rows: list[Row] = [
        ("tokens identical to stock's, chunks", f"{texts.tokens_identical} of {len(texts.compiled)}"),
        ("random generators as stock leaves them", yes(texts.generator_identical)),
        ("least signal to error against stock, dB", _db(texts.signal_to_error_db)),
        (
            "repeated calls that gave the first one's wave, bit for bit",
            f"{repeated} of {len(texts.compiled) * (texts.settings.repeats - 1)}",
        ),
        ("graphs compiled or recorded after the warm-up", str(texts.later_graphs)),
        ("fallback events", _events(result)),
    ]
    names = ["outputs", "", "", "", "", "fallbacks"]
    if found is not None:
        calls = len(found.seconds) * soaking.ROUND
        rows += [
            (f"{calls} further calls, {len(soaking.TEXTS)} texts, {soaking.VOICES} voices: waves that drifted",
             str(found.drifted)),
            ("memory gained in them, MiB", f"{found.growth / 2**20:.1f}"),
            ("graphs after the first round of them", str(found.graphs)),
        ]  # fmt: skip
        names += ["", "memory", ""]
    rows.append(("all of it as it should be", yes(result.passed)))
    notes = [_proof(result), "Counts have no interval."]
    return Section(_with(("", "here", reference.TITLE), rows, reference.STABILITY, [*names, ""]), notes, "Stability")


def _db(ratio: float | None) -> str:
    return "lengths differ" if ratio is None else f"{ratio:.1f}"


def _parameters(result: ReportResult) -> Section:
    s, texts = result.settings, result.generation
    words = sum(len(text.split()) for text in result.measured)
    spoken = f"{sum(map(len, result.measured))} in {len(result.measured)} of {len(CHUNKS)} chunks"
    about, model = result.machine, result.model
    gpus = ", ".join(about["gpus"]) or "no GPU"
    rows: list[Row] = [
        ("characters", f"{spoken}; {texts.audio_seconds:.1f} s of speech"),
        ("words", str(words)),
        ("runs", f"{s.voice_runs} of voice encoding, {s.repeats} of each chunk and of each fresh process"),
        ("machine", f"{about['cpu']}, {about['torch_threads']} threads, {about['memory_gib']} GiB; {gpus}"),
        ("model", f"T3 {model['t3_parameters'] / 1e6:.0f} M, S3Gen {model['s3gen_parameters'] / 1e6:.0f} M parameters, "
                  f"{model['dtype']}, {model['device']}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in about["versions"].items())),
        ("seed", str(s.seed)),
        *((f"time to measure: {name}, s", f"{seconds:.0f}") for name, seconds in result.spent.items()),
    ]  # fmt: skip
    names = [str(row[0]) for row in rows]
    return Section(_with(("", "here", reference.TITLE), rows, reference.PARAMETERS, names), (), "Test parameters")


def _raw(result: ReportResult) -> list[Section]:
    def listed(values: Sequence[float], scale: float = 1000) -> str:
        return ", ".join(f"{scale * value:.4g}" for value in values)

    rows: list[Row] = [("every measured value, in order", *SIDES)]
    for name, values in result.loading.values.items():
        rows.append((f"loading, {name}, s or GiB", *(listed(each, 1) for each in values)))
    for number, (stock, compiled) in enumerate(zip(result.generation.stock, result.generation.compiled), 1):
        rows.append((f"chunk {number}, ms", listed(stock.seconds), listed(compiled.seconds)))
    if result.generation.batch:
        rows.append(("all chunks as a batch, ms", "", listed(result.generation.batch)))
    for phase, title in KINDS.items():
        rows.append((f"voice, {title}, ms", *map(listed, result.voice.values[phase])))
    return [Section(rows, ("All of it, and more, is in report.json.",), "Raw data")]
