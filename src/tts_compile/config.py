"""The frozen configuration of a compiled model; its values are checked here and nowhere else."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typing_extensions import Self

from .bucketing import Range, as_ranges, is_range, mistaken_ranges
from .errors import ConfigError
from .fallback import MAX_FAILURES, POLICIES
from .utils.arguments import is_int, mistaken_choice, raise_all, unknown_key

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_INDUCTOR_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
EXECUTIONS = ("auto", "stock", "eager", "inductor", "cuda_graph")
DTYPES = ("model", "bf16", "fp16", "int8")

# For each component, the settings that have an effect on it. An execution or a dtype that a component does not have is
# a request that the report answers with an event, and not a mistake: both may depend on the machine.
_EVERY = ("execution", "dtype")
_COMPILED = (*_EVERY, "backend", "mode", "dynamic")
SETTINGS = {
    "t3": (*_COMPILED, "fuse", "draft_tokens"),
    "flow": (*_COMPILED, "fuse"),
    "vocoder": _COMPILED,
    "voice_encoder": _EVERY,
    "reference": _EVERY,
    "watermark": _EVERY,
}
COMPONENTS = tuple(SETTINGS)

# The values that a field may have, by the field's name or else by its type: a test, and what it wants.
Rule = tuple[Callable[[Any], bool], str]
_CHOICES = {"execution": EXECUTIONS, "dtype": DTYPES, "fallback": POLICIES}
_RULES: dict[str, Rule] = {
    "draft_tokens": (lambda v: v is None or (is_int(v) and 0 <= v <= 7), "a whole number from 0 to 7 or None"),
    "max_failures": (lambda v: is_int(v) and v >= 1, "a whole number from 1"),
    "warmup_samples": (lambda v: is_int(v) and v >= 0, "a whole number from 0"),
    "bool": (lambda v: isinstance(v, bool), "True or False"),
    "bool | None": (lambda v: v is None or isinstance(v, bool), "True, False or None"),
    "str": (lambda v: isinstance(v, str) and v != "", "a non-empty string"),
    "str | None": (lambda v: v is None or isinstance(v, str), "a string or None"),
    "float | None": (
        lambda v: v is None or ((is_int(v) or isinstance(v, float)) and 0 < v < math.inf),
        "positive or None",
    ),
    "range": (is_range, "two ascending whole numbers"),
}

# The settings of the reference report.
_REFERENCE_SWITCHES = {
    "ENABLE_TORCH_COMPILE": COMPONENTS,
    "COMPILE_VOICE_ENCODER": ("voice_encoder",),
    "COMPILE_TTS_DECODER": ("t3",),
}
_REFERENCE_TEXTS = {"TORCH_COMPILE_BACKEND": "backend", "TORCH_COMPILE_MODE": "mode"}
_REFERENCE_RANGES = ("CHUNK_BUCKET_SHORT_RANGE", "CHUNK_BUCKET_MEDIUM_RANGE", "CHUNK_BUCKET_LONG_RANGE")
_REFERENCE_RULES = {
    **dict.fromkeys((*_REFERENCE_SWITCHES, "ENABLE_CHUNK_SIZE_BUCKETING"), _RULES["bool"]),
    **dict.fromkeys(_REFERENCE_TEXTS, _RULES["str"]),
    **dict.fromkeys(_REFERENCE_RANGES, _RULES["range"]),
}


def _mistaken_fields(settings: ComponentPolicy | CompileConfig) -> list[str]:
    """Returns one mistake for each field that is not one of its choices or does not keep its rule."""
    mistakes = []
    for field in dataclasses.fields(settings):
        name, value = field.name, getattr(settings, field.name)
        if name in _CHOICES:
            mistakes += mistaken_choice(name, value, _CHOICES[name])
        elif rule := _RULES.get(name) or _RULES.get(str(field.type)):
            mistakes += _mistaken({name: value}, {name: rule})
    return mistakes


def _mistaken(values: Mapping[str, Any], rules: Mapping[str, Rule]) -> list[str]:
    """Returns one mistake for each of ``values`` that does not keep the rule of its name."""
    return [
        f"{name} must be {wanted}, got {values[name]!r}"
        for name, (fits, wanted) in rules.items()
        if name in values and not fits(values[name])
    ]


@dataclass(frozen=True)
class ComponentPolicy:
    """The execution of one component; a setting that its component does not have must keep its default.

    Attributes:
        execution: ``"auto"`` (the fastest that works here), ``"stock"``, ``"eager"`` (the library's own loop without
            compiling), ``"inductor"`` or ``"cuda_graph"``.
        backend: the ``torch.compile`` backend used for ``"inductor"`` execution.
        mode: the ``torch.compile`` mode.
        dynamic: the ``torch.compile`` setting for shapes; None leaves the choice to the component.
        dtype: ``"model"`` keeps the model's own; others store weights in lower precision.
        draft_tokens: the number of tokens that an int8 copy of T3 drafts and T3 verifies in one pass; the result does
            not depend on it. 0 switches drafting off, None leaves the number to the component.
        fuse: whether the kernels inside a CUDA graph come from ``torch.compile``; None: where it can generate them.
    """

    execution: str = "auto"
    backend: str = "inductor"
    mode: str = "default"
    dynamic: bool | None = None
    dtype: str = "model"
    draft_tokens: int | None = None
    fuse: bool | None = None

    def __post_init__(self) -> None:
        mistakes = _mistaken_fields(self)
        if self.backend == "inductor" and isinstance(self.mode, str) and self.mode not in _INDUCTOR_MODES:
            mistakes.append(f"mode must be one of {', '.join(_INDUCTOR_MODES)} for inductor, got {self.mode!r}")
        raise_all(mistakes)

    def without_effect(self, component: str) -> list[str]:
        """Returns a mistake for each setting that is not at its default and has no effect on ``component``.

        >>> ComponentPolicy(draft_tokens=5).without_effect("vocoder")
        ['draft_tokens has no effect on vocoder, only on t3']
        """
        return [
            f"{setting.name} has no effect on {component}, only on "
            + ", ".join(name for name, settings in SETTINGS.items() if setting.name in settings)
            for setting in dataclasses.fields(self)
            if setting.name not in SETTINGS[component] and getattr(self, setting.name) != setting.default
        ]


@dataclass(frozen=True)
class CompileConfig:
    """All settings of :func:`tts_compile.compile_model`.

    Attributes:
        t3, flow, vocoder, voice_encoder, reference, watermark: a policy for each component.
        buckets: ranges of chunk lengths in characters, ascending; empty switches bucketing off.
        fallback: ``"fallback"`` runs the next safe level after a failure, ``"raise"`` raises.
        max_failures: after this many failures at a level, the component stops using it.
        warmup_samples: number of built-in texts that a warm-up begins to synthesize; their lengths spread over the
            buckets.
        memory_limit_gb: upper limit in GiB on the memory that the process holds on the model's device; None for no
            limit. Optional memory is not allocated beyond it: copies of weights, CUDA graphs, slots of a batch.
        compile_seconds: time for compiling, all components together; None for no limit. Once it is spent, functions
            that are not compiled yet run eagerly.
        compile_in_background: on a CPU, another process compiles while this one runs eagerly; the model switches to the
            compiled functions between two utterances.
        cpu_fallback: for a model on a GPU, a last level after stock that runs stock on a copy of the component on the
            CPU. It draws a CPU's random numbers, so its results differ.
        cache_dir: folder for compiled code, with a subfolder for each kind of machine. None takes
            ``TTS_COMPILE_CACHE_DIR`` from the environment or, where the user has set it, ``TORCHINDUCTOR_CACHE_DIR``,
            or else ``tts_compile`` in the user's cache folder.

    Raises:
        ConfigError: lists every value out of range, and every setting without effect on its component.
    """

    t3: ComponentPolicy = ComponentPolicy()
    flow: ComponentPolicy = ComponentPolicy()
    vocoder: ComponentPolicy = ComponentPolicy()
    voice_encoder: ComponentPolicy = ComponentPolicy()
    reference: ComponentPolicy = ComponentPolicy()
    watermark: ComponentPolicy = ComponentPolicy()
    buckets: tuple[Range, ...] = ((50, 200), (200, 500), (500, 1000))
    fallback: str = "fallback"
    max_failures: int = MAX_FAILURES
    warmup_samples: int = 3
    memory_limit_gb: float | None = None
    compile_seconds: float | None = None
    compile_in_background: bool = False
    cpu_fallback: bool = False
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "buckets", as_ranges(self.buckets))  # lists, as TOML and JSON give them
        mistakes = _mistaken_fields(self) + mistaken_ranges(self.buckets)
        for name in COMPONENTS:
            policy = getattr(self, name)
            if isinstance(policy, ComponentPolicy):
                mistakes += policy.without_effect(name)
            else:
                mistakes.append(f"{name} must be a ComponentPolicy, got {type(policy).__name__}")
        raise_all(mistakes)

    @classmethod
    def exact(cls) -> Self:
        """Returns the default: the model's own dtype, equal tokens under equal seeds."""
        return cls()

    @classmethod
    def fast(cls) -> Self:
        """Requests bfloat16 weights in T3; this version has none: T3 keeps the model's dtype and reports an event."""
        return cls(t3=ComponentPolicy(dtype="bf16"))

    @classmethod
    def off(cls) -> Self:
        """Returns the configuration that leaves every component stock."""
        stock = ComponentPolicy(execution="stock")
        return cls(**dict.fromkeys(COMPONENTS, stock))  # type: ignore[arg-type]

    @classmethod
    def from_env(cls) -> Self:
        """Reads the variables ``TTS_COMPILE``, ``TTS_COMPILE_CONFIG`` and ``TTS_COMPILE_CACHE_DIR``.

        The file is TOML, or JSON where its name ends in ``.json``. Where none is set, the result is the exact preset.
        """
        if switched_off_by_env():
            return cls.off()
        path = os.environ.get("TTS_COMPILE_CONFIG")
        config = (cls.from_json if path.endswith(".json") else cls.from_toml)(path) if path else cls.exact()
        cache_dir = os.environ.get("TTS_COMPILE_CACHE_DIR")
        return config.replace(cache_dir=cache_dir) if cache_dir else config

    @classmethod
    def from_toml(cls, path: str | Path) -> Self:
        """Reads a TOML file with the keys of :meth:`from_mapping`, each component in a table of its own.

        Raises:
            ConfigError: for a file that cannot be read or parsed, and for every mistake in its settings.
        """
        return cls.from_mapping(_parsed(path, "TOML", tomllib.loads))

    @classmethod
    def from_json(cls, path: str | Path) -> Self:
        """Reads a JSON file: the output of :meth:`to_dict`, or a choice that :func:`tts_compile.autotune` has stored.

        Raises:
            ConfigError: for a file that cannot be read or parsed, and for every mistake in its settings.
        """
        content = _parsed(path, "JSON", json.loads)
        if isinstance(content, dict) and isinstance(content.get("config"), dict):
            content = content["config"]
        return cls.from_mapping(content)

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Self:
        """Builds a configuration from field names, nested per component, and the reference report's settings.

        >>> CompileConfig.from_mapping({"t3": {"execution": "eager"}}).t3.execution
        'eager'
        >>> CompileConfig.from_mapping({"COMPILE_TTS_DECODER": False}).t3.execution
        'stock'

        Where a field name and a setting of the reference report contradict each other, the field name wins.

        Raises:
            ConfigError: lists every unknown key, with the nearest known one, every value out of range, and every
                setting without effect on its component.
        """
        if not isinstance(mapping, Mapping):
            raise ConfigError(f"expected a mapping, got {type(mapping).__name__}")
        known = [*(f.name for f in dataclasses.fields(cls)), *_REFERENCE_RULES]
        settings = [f.name for f in dataclasses.fields(ComponentPolicy)]
        mistakes = [unknown_key(key, known) for key in mapping if key not in known]
        mistakes += (mistaken := _mistaken(mapping, _REFERENCE_RULES))
        policies, fields = _from_reference({} if mistaken else mapping)
        fields |= {k: v for k, v in mapping.items() if k in known and k not in (*_REFERENCE_RULES, *COMPONENTS)}
        for name in COMPONENTS:
            given = mapping.get(name, {})
            if isinstance(given, ComponentPolicy):
                fields[name] = given
                continue
            if not isinstance(given, Mapping):
                mistakes.append(f"{name} must be a table of settings, got {given!r}")
                continue
            mistakes += [f"{name}: {unknown_key(key, settings)}" for key in given if key not in settings]
            chosen = policies[name] | {key: value for key, value in given.items() if key in settings}
            try:
                fields[name] = ComponentPolicy(**chosen)
            except ConfigError as error:
                mistakes += [f"{name}: {mistake}" for mistake in error.mistakes]
        try:
            config = cls(**fields)
        except ConfigError as error:
            mistakes += error.mistakes
        raise_all(mistakes)
        return config

    def to_dict(self) -> dict[str, Any]:
        """Returns plain, JSON-able values, from which :meth:`from_mapping` makes an equal configuration."""
        plain = dataclasses.asdict(self)
        plain["buckets"] = [list(r) for r in self.buckets]
        return plain

    def replace(self, **changes: Any) -> Self:
        """Returns a copy with some fields changed.

        Raises:
            ConfigError: lists every unknown field or, where all are known, every mistake in the new values.
        """
        known = [f.name for f in dataclasses.fields(self)]
        raise_all([unknown_key(key, known) for key in changes if key not in known])
        return dataclasses.replace(self, **changes)


def _parsed(path: str | Path, kind: str, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # of either parser, and of text that is not UTF-8
        raise ConfigError(f"{path} is not valid {kind}: {error}") from error


def switched_off_by_env() -> bool:
    """Returns whether ``TTS_COMPILE`` is set to 0, false, no or off."""
    return os.environ.get("TTS_COMPILE", "").strip().lower() in ("0", "false", "no", "off")


def _from_reference(settings: Mapping[str, Any]) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Translates the reference report's settings, which are in range, into settings of each component and fields."""
    policies: dict[str, dict[str, Any]] = {name: {} for name in COMPONENTS}
    for key, setting in _REFERENCE_TEXTS.items():
        for name in COMPONENTS:
            if key in settings and setting in SETTINGS[name]:
                policies[name][setting] = settings[key]
    for key, names in _REFERENCE_SWITCHES.items():
        if settings.get(key) is False:
            for name in names:
                policies[name]["execution"] = "stock"
    defaults = CompileConfig().buckets
    ranges = [settings.get(key, default) for key, default in zip(_REFERENCE_RANGES, defaults)]
    return policies, {"buckets": ranges if settings.get("ENABLE_CHUNK_SIZE_BUCKETING", True) else ()}
