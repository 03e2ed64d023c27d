"""Make the text-to-speech model Chatterbox fast, exactly and provably."""

from . import testing
from .api import CompiledTTS, WarmupReport, compile_model
from .config import CompileConfig, ComponentPolicy
from .errors import (
    CompilationError,
    ConfigError,
    InputError,
    ModelStateError,
    TTSCompileError,
    UnsupportedModelError,
)
from .fallback import FallbackEvent, FallbackManager
from .report import ComponentReport, ExecutionReport

__version__ = "0.1.0"

__all__ = [
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
    "ModelStateError",
    "TTSCompileError",
    "UnsupportedModelError",
    "WarmupReport",
    "compile_model",
    "testing",
]
