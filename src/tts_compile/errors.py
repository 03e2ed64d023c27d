"""One family of errors; each is also the built-in type that Python users expect."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from .parity import ParityReport


class TTSCompileError(Exception):
    """Base of every error that this library raises on purpose."""


class ConfigError(TTSCompileError, ValueError):
    """Settings are unknown or out of range; ``mistakes`` lists every one found, and so does the message."""

    def __init__(self, *mistakes: str) -> None:
        super().__init__("; ".join(mistakes))
        self.mistakes = mistakes


class InputError(TTSCompileError, ValueError):
    """Text, voice or sampling settings that the model cannot speak with."""


class CheckpointError(InputError):
    """Files from which a model cannot be loaded; the message lists everything that is wrong with them.

    Attributes:
        folder: where they are.
        model: the name of the class that they are no files of.
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
    """The model is in a state in which it cannot be compiled or cannot speak."""


class NonFiniteError(ModelStateError):
    """The model has computed what is not finite."""


class OutOfMemoryError(TTSCompileError, MemoryError):
    """Memory has run out at every level; the message has the numbers."""


class UnsupportedModelError(TTSCompileError, TypeError):
    """The object is no model that this library knows; the message names those that it does."""


class BatchError(TTSCompileError, RuntimeError):
    """Some chunks of a batch failed; the others are in ``results``.

    Attributes:
        results: a wave for each text, in input order; None where it failed.
        errors: by the index of the text.
    """

    def __init__(self, message: str, results: list[Tensor | None], errors: dict[int, Exception]) -> None:
        super().__init__(message, results, errors)  # so that it can be pickled
        self.results = results
        self.errors = errors

    def __str__(self) -> str:
        return str(self.args[0])


class CompilationError(TTSCompileError, RuntimeError):
    """A component could not be compiled and its policy forbids falling back."""


class UnsafeFileError(CompilationError):
    """Compiled code is not loaded from where another user could have written it."""


class ParityError(TTSCompileError, RuntimeError):
    """A compiled model does not give what stock gives, and its policy forbids falling back.

    Attributes:
        report: the comparison.
    """

    def __init__(self, message: str, report: ParityReport) -> None:
        super().__init__(message, report)
        self.report = report

    def __str__(self) -> str:
        return str(self.args[0])
