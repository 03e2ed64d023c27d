"""What to run and how: one frozen configuration, checked once, here."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from typing_extensions import Self

from .bucketing import Range, as_ranges, is_range, mistaken_ranges
from .errors import ConfigError
from .fallback import MAX_FAILURES
from .utils.arguments import is_int, is_number, mistaken_choice, raise_all, unknown_key

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_INDUCTOR_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
EXECUTIONS = ("auto", "stock", "eager", "inductor", "cuda_graph")
DTYPES = ("model", "bf16", "fp16", "int8")
FALLBACKS = ("fallback", "raise")
COMPONENTS = ("t3", "flow", "vocoder", "voice_encoder", "reference", "watermark")

_REFERENCE_RANGES = ("CHUNK_BUCKET_SHORT_RANGE", "CHUNK_BUCKET_MEDIUM_RANGE", "CHUNK_BUCKET_LONG_RANGE")
REFERENCE_SETTINGS = (
    "ENABLE_TORCH_COMPILE",
    "COMPILE_VOICE_ENCODER",
    "COMPILE_TTS_DECODER",
    "TORCH_COMPILE_BACKEND",
    "TORCH_COMPILE_MODE",
    "ENABLE_CHUNK_SIZE_BUCKETING",
    *_REFERENCE_RANGES,
)


@dataclass(frozen=True)
class ComponentPolicy:
    """How one component runs.

    Attributes:
        execution: ``"auto"`` (the best that works here), ``"stock"``, ``"eager"`` (the library's own loop without
            compiling), ``"inductor"`` or ``"cuda_graph"``.
        backend: the ``torch.compile`` backend used for ``"inductor"`` execution.
        mode: the ``torch.compile`` mode.
        dynamic: the ``torch.compile`` setting for shapes; None leaves the choice to the component.
        dtype: ``"model"`` keeps the model's own; others store weights in lower precision.
        draft_tokens: tokens that T3 guesses ahead with an int8 copy of itself and verifies in its own dtype, so that
            the result is the same; 0 switches guessing off, None leaves the number to the component.
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
        raise_all(self._mistakes())

    def _mistakes(self) -> list[str]:
        mistakes = mistaken_choice("execution", self.execution, EXECUTIONS)
        mistakes += mistaken_choice("dtype", self.dtype, DTYPES)
        mistakes += [
            f"{name} must be a non-empty string, got {value!r}"
            for name, value in (("backend", self.backend), ("mode", self.mode))
            if not isinstance(value, str) or not value
        ]
        mistakes += [
            f"{name} must be True, False or None, got {value!r}"
            for name, value in (("dynamic", self.dynamic), ("fuse", self.fuse))
            if value is not None and not isinstance(value, bool)
        ]
        if self.backend == "inductor" and isinstance(self.mode, str) and self.mode not in _INDUCTOR_MODES:
            mistakes.append(f"mode must be one of {', '.join(_INDUCTOR_MODES)} for inductor, got {self.mode!r}")
        if self.draft_tokens is not None and not (is_int(self.draft_tokens) and 0 <= self.draft_tokens <= 7):
            mistakes.append(f"draft_tokens must be a whole number from 0 to 7 or None, got {self.draft_tokens!r}")
        return mistakes


@dataclass(frozen=True)
class CompileConfig:
    """Everything :func:`tts_compile.compile_model` can be told.

    Attributes:
        t3, flow, vocoder, voice_encoder, reference, watermark: a policy for each component.
        buckets: ranges of chunk lengths in characters, ascending; empty switches bucketing off.
        fallback: ``"fallback"`` runs the next safe level after a failure, ``"raise"`` raises.
        max_failures: so many failures of a component at a level, and it stays at the next safe one for good.
        warmup_samples: built-in texts of which a warm-up speaks the beginning; their lengths spread over the buckets.
        memory_limit_gb: upper limit in GiB on what the process holds on the model's device; None for no limit. What the
            library could do without is not taken beyond it: copies, recordings, places in a batch.
        compile_seconds: budget for compiling, all components together; None for any. Once it is spent, what is not
            compiled yet runs eagerly.
        compile_in_background: on a CPU, have another process compile while this one speaks eagerly, and switch between
            two utterances.
        cpu_fallback: for a model on a GPU, a last level after stock: stock on a copy of the component in the machine's
            memory. Its random numbers, and so its results, are a CPU's.
        cache_dir: folder for compiled code, with a folder in it for each kind of machine; None takes what the
            environment has as ``TTS_COMPILE_CACHE_DIR`` or, set by the user, as ``TORCHINDUCTOR_CACHE_DIR``, or
            ``tts_compile`` in the user's cache folder.
    """

    t3: ComponentPolicy = ComponentPolicy()
    flow: ComponentPolicy = ComponentPolicy()
    vocoder: ComponentPolicy = ComponentPolicy()
    voice_encoder: ComponentPolicy = ComponentPolicy()
    reference: ComponentPolicy = ComponentPolicy()
    watermark: ComponentPolicy = ComponentPolicy()
    buckets: tuple[Range, ...] = field(default=((50, 200), (200, 500), (500, 1000)))
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
        mistakes = [
            f"{name} must be a ComponentPolicy, got {type(getattr(self, name)).__name__}"
            for name in COMPONENTS
            if not isinstance(getattr(self, name), ComponentPolicy)
        ]
        mistakes += mistaken_choice("fallback", self.fallback, FALLBACKS)
        mistakes += mistaken_ranges(self.buckets)
        if not is_int(self.warmup_samples) or self.warmup_samples < 0:
            mistakes.append(f"warmup_samples must be a whole number from 0, got {self.warmup_samples!r}")
        if not is_int(self.max_failures) or self.max_failures < 1:
            mistakes.append(f"max_failures must be a whole number from 1, got {self.max_failures!r}")
        for name in ("memory_limit_gb", "compile_seconds"):
            limit = getattr(self, name)
            if limit is not None and not (is_number(limit) and math.isfinite(limit) and limit > 0):
                mistakes.append(f"{name} must be positive or None, got {limit!r}")
        mistakes += [
            f"{name} must be True or False, got {getattr(self, name)!r}"
            for name in ("compile_in_background", "cpu_fallback")
            if not isinstance(getattr(self, name), bool)
        ]
        if self.cache_dir is not None and not isinstance(self.cache_dir, str):
            mistakes.append(f"cache_dir must be a string or None, got {self.cache_dir!r}")
        raise_all(mistakes)

    @classmethod
    def exact(cls) -> Self:
        """The default: the model's own dtype, equal tokens under equal seeds."""
        return cls()

    @classmethod
    def fast(cls) -> Self:
        """Asks for bfloat16 weights in T3; this version has none, so T3 keeps the model's dtype and reports it."""
        return cls(t3=ComponentPolicy(dtype="bf16"))

    @classmethod
    def off(cls) -> Self:
        """Every component stays stock."""
        stock = ComponentPolicy(execution="stock")
        return cls(**dict.fromkeys(COMPONENTS, stock))  # type: ignore[arg-type]

    @classmethod
    def from_env(cls) -> Self:
        """The exact preset, or what ``TTS_COMPILE``, ``TTS_COMPILE_CONFIG`` and ``TTS_COMPILE_CACHE_DIR`` say.

        The file is TOML, or JSON where its name ends in ``.json``.
        """
        if switched_off_by_env():
            return cls.off()
        path = os.environ.get("TTS_COMPILE_CONFIG")
        config = (cls.from_json if path.endswith(".json") else cls.from_toml)(path) if path else cls.exact()
        cache_dir = os.environ.get("TTS_COMPILE_CACHE_DIR")
        return config.replace(cache_dir=cache_dir) if cache_dir else config

    @classmethod
    def from_toml(cls, path: str | Path) -> Self:
        """Read a TOML file; its tables and keys are those of :meth:`from_mapping`.

        Raises:
            ConfigError: for what cannot be read, and as :meth:`from_mapping`.
        """
        return cls.from_mapping(_parsed(path, "TOML", tomllib.loads))

    @classmethod
    def from_json(cls, path: str | Path) -> Self:
        """Read a JSON file: what :meth:`to_dict` gives, or what :func:`tts_compile.autotune` has stored.

        Raises:
            ConfigError: as :meth:`from_toml`.
        """
        content = _parsed(path, "JSON", json.loads)
        if isinstance(content, dict) and isinstance(content.get("config"), dict):
            content = content["config"]
        return cls.from_mapping(content)

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Self:
        """Build a configuration from field names, nested per component, and the reference report's settings.

        >>> CompileConfig.from_mapping({"t3": {"execution": "eager"}}).t3.execution
        'eager'
        >>> CompileConfig.from_mapping({"COMPILE_TTS_DECODER": False}).t3.execution
        'stock'

        Where both name the same thing, the field name wins.

        Raises:
            ConfigError: lists every unknown key, with the nearest known one, and every value out of range.
        """
        if not isinstance(mapping, Mapping):
            raise ConfigError(f"expected a mapping, got {type(mapping).__name__}")
        fields = [f.name for f in dataclasses.fields(cls)]
        known = [*fields, *REFERENCE_SETTINGS]
        mistakes = [unknown_key(key, known) for key in mapping if key not in known]
        policies, others, found = _from_reference({k: v for k, v in mapping.items() if k in REFERENCE_SETTINGS})
        mistakes += found
        for name in COMPONENTS:
            given = mapping.get(name, {})
            if isinstance(given, ComponentPolicy):
                policies[name] = dataclasses.asdict(given)
            elif isinstance(given, Mapping):
                settings = [f.name for f in dataclasses.fields(ComponentPolicy)]
                mistakes += [f"{name}: {unknown_key(key, settings)}" for key in given if key not in settings]
                policies[name] |= {key: value for key, value in given.items() if key in settings}
            else:
                mistakes.append(f"{name} must be a table of settings, got {given!r}")
        built: dict[str, Any] = {}
        for name, policy in policies.items():
            try:
                built[name] = ComponentPolicy(**policy)
            except ConfigError as error:
                mistakes += [f"{name}: {mistake}" for mistake in error.mistakes]
        others |= {key: value for key, value in mapping.items() if key in fields and key not in COMPONENTS}
        try:
            config = cls(**others)
        except ConfigError as error:
            mistakes += error.mistakes
        raise_all(mistakes)
        return config.replace(**built)

    def to_dict(self) -> dict[str, Any]:
        """Plain, JSON-able values; :meth:`from_mapping` of them gives an equal configuration."""
        plain = dataclasses.asdict(self)
        plain["buckets"] = [list(r) for r in self.buckets]
        return plain

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed."""
        known = [f.name for f in dataclasses.fields(self)]
        raise_all([unknown_key(key, known) for key in changes if key not in known])
        return dataclasses.replace(self, **changes)


def _parsed(path: str | Path, kind: str, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # those of both parsers, and text that is no UTF-8
        raise ConfigError(f"{path} is no valid {kind}: {error}") from error


def switched_off_by_env() -> bool:
    """Whether ``TTS_COMPILE`` is set to 0, false, no or off."""
    return os.environ.get("TTS_COMPILE", "").strip().lower() in ("0", "false", "no", "off")


def _from_reference(settings: Mapping[str, Any]) -> tuple[dict[str, dict[str, Any]], dict[str, Any], list[str]]:
    """Translate the reference report's settings: (policies, other fields, mistakes)."""
    mistakes = []
    for key, value in settings.items():
        if key in _REFERENCE_RANGES:
            if not is_range(value):
                mistakes.append(f"{key} must be two ascending whole numbers, got {value!r}")
        elif key in ("TORCH_COMPILE_BACKEND", "TORCH_COMPILE_MODE"):
            if not isinstance(value, str) or not value:
                mistakes.append(f"{key} must be a non-empty string, got {value!r}")
        elif not isinstance(value, bool):
            mistakes.append(f"{key} must be true or false, got {value!r}")
    if mistakes:
        return {name: {} for name in COMPONENTS}, {}, mistakes

    shared = {}
    if "TORCH_COMPILE_BACKEND" in settings:
        shared["backend"] = settings["TORCH_COMPILE_BACKEND"]
    if "TORCH_COMPILE_MODE" in settings:
        shared["mode"] = settings["TORCH_COMPILE_MODE"]
    policies: dict[str, dict[str, Any]] = {name: dict(shared) for name in COMPONENTS}
    switches = {"COMPILE_VOICE_ENCODER": ("voice_encoder",), "COMPILE_TTS_DECODER": ("t3",)}
    for key, names in {**switches, "ENABLE_TORCH_COMPILE": COMPONENTS}.items():
        if settings.get(key) is False:
            for name in names:
                policies[name]["execution"] = "stock"

    others: dict[str, Any] = {}
    defaults = CompileConfig().buckets
    ranges = [settings.get(key, default) for key, default in zip(_REFERENCE_RANGES, defaults)]
    others["buckets"] = ranges if settings.get("ENABLE_CHUNK_SIZE_BUCKETING", True) else ()
    return policies, others, []
