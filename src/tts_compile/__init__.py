"""Make the text-to-speech model Chatterbox fast, exactly and provably."""

from . import testing
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
from .handle import CompiledTTS
from .loading import load_model, load_pretrained
from .parity import ParityReport
from .report import ComponentReport, ExecutionReport, WarmupReport
from .splitting import split_text
from .timing.blocks import Timings, timed
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
    "load_compile_cache",
    "load_model",
    "load_pretrained",
    "save_compile_cache",
    "split_text",
    "testing",
    "timed",
    "validate",
]
