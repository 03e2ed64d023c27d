"""Makes text-to-speech models fast without changing their results, and proves with counts which code ran."""

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__ as __version__
from .api import compile_model, validate
from .batch import BatchProgress
from .bucketing import Batch, BucketStats, ChunkBucketer
from .cache import LoadedCache, SavedCache, load_compile_cache, save_compile_cache
from .config import CompileConfig, ComponentPolicy
from .errors import (
    BatchError,
    CheckpointError,
    CompilationError,
    ConfigError,
    InputError,
    ModelStateError,
    NonFiniteError,
    OutOfMemoryError,
    ParityError,
    TTSCompileError,
    UnsafeFileError,
    UnsupportedModelError,
)
from .fallback import FallbackEvent, FallbackManager
from .families import Family, families, register_family  # the function hides the package of its name
from .handle import CompiledTTS
from .loading import load_model, load_pretrained
from .parity import ParityReport
from .report import ComponentReport, ExecutionReport, WarmupReport
from .splitting import split_text
from .timing.blocks import Timings, timed

if TYPE_CHECKING:
    from . import testing
    from .tuning import autotune

__all__ = [
    "Batch",
    "BatchError",
    "BatchProgress",
    "BucketStats",
    "CheckpointError",
    "ChunkBucketer",
    "CompilationError",
    "CompileConfig",
    "CompiledTTS",
    "ComponentPolicy",
    "ComponentReport",
    "ConfigError",
    "ExecutionReport",
    "FallbackEvent",
    "FallbackManager",
    "Family",
    "InputError",
    "LoadedCache",
    "ModelStateError",
    "NonFiniteError",
    "OutOfMemoryError",
    "ParityError",
    "ParityReport",
    "SavedCache",
    "TTSCompileError",
    "Timings",
    "UnsafeFileError",
    "UnsupportedModelError",
    "WarmupReport",
    "autotune",
    "compile_model",
    "families",
    "load_compile_cache",
    "load_model",
    "load_pretrained",
    "register_family",
    "save_compile_cache",
    "split_text",
    "testing",
    "timed",
    "validate",
]


def __getattr__(name: str) -> Any:
    """Imports ``testing`` and ``autotune`` when they are first used: most programs use neither."""
    if name == "testing":
        return importlib.import_module(".testing", __name__)
    if name == "autotune":
        return importlib.import_module(".tuning", __name__).autotune
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Returns the public names, with those that are not imported yet."""
    return sorted({*globals(), *__all__})
