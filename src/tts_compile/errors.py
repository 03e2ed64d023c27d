"""The errors of this library; each is also the built-in type that Python users expect."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


class TTSCompileError(Exception):
    """The base of every error that this library raises on purpose."""


class ConfigError(TTSCompileError, ValueError):
    """Unknown settings, or values out of range; ``mistakes`` lists every one found, and so does the message."""

    def __init__(self, *mistakes: str) -> None:
        super().__init__("; ".join(mistakes))
        self.mistakes = mistakes


class InputError(TTSCompileError, ValueError):
    """An argument that cannot be used, such as a text, a voice or a sampling setting."""


class CheckpointError(InputError):
    """Files from which a model cannot be loaded; the message lists everything that is wrong with them.

    Attributes:
        folder: the checkpoint's folder.
        model: the name of the class that was to be loaded.
        problems: one sentence for each file, or tensor of a file, that is missing, damaged or does not fit.
    """

    def __init__(self, folder: str, model: str, problems: tuple[str, ...]) -> None:
        super().__init__(folder, model, problems)
        self.folder = folder
        self.model = model
        self.problems = problems

    def __str__(self) -> str:
        return "; ".join([f"{self.folder} cannot be loaded as {self.model}: {self.problems[0]}", *self.problems[1:]])


class ModelStateError(TTSCompileError, RuntimeError):
    """A state of the model in which it cannot be compiled or run."""


class NonFiniteError(ModelStateError):
    """Values computed by the model that are not finite."""


class OutOfMemoryError(TTSCompileError, MemoryError):
    """A shortage of memory at every level; the message has the numbers."""


class UnsupportedModelError(TTSCompileError, TypeError):
    """An object that is not a supported model; the message names the supported ones."""


class BatchError(TTSCompileError, RuntimeError):
    """The failure of some chunks of a batch; the other chunks are in ``results``.

    Attributes:
        results: a wave for each text, in input order; None for a chunk that failed.
        errors: the error of each failed chunk, by the index of its text.
    """

    def __init__(self, message: str, results: list[Tensor | None], errors: dict[int, Exception]) -> None:
        super().__init__(message, results, errors)  # so that it can be pickled
        self.results = results
        self.errors = errors

    def __str__(self) -> str:
        return str(self.args[0])


class CompilationError(TTSCompileError, RuntimeError):
    """A component that cannot be compiled, where the policy forbids falling back."""


class UnsafeFileError(CompilationError):
    """Compiled code in a file or folder that another user can write to; it is not loaded."""


class ParityError(TTSCompileError, RuntimeError):
    """A compiled model whose results differ from stock's, where the policy forbids falling back.

    Attributes:
        report: the comparison, a :class:`tts_compile.ParityReport`.
    """

    def __init__(self, message: str, report: Any) -> None:
        super().__init__(message, report)
        self.report = report

    def __str__(self) -> str:
        return str(self.args[0])
