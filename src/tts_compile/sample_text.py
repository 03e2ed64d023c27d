"""Built-in text of any length."""

from __future__ import annotations

TEXT = "The quick brown fox jumps over the lazy dog, and then it takes a long nap in the warm sun."
_PROSE = TEXT + (
    " Seven wizards jog past the old mill and vex five bold gnomes, who would rather have been left alone with their "
    "tea. "
)


def prose(length: int, start: int = 0) -> str:
    """A text of ``length`` characters, from another place of the same one for another ``start``."""
    return (_PROSE * (2 + (start + length) // len(_PROSE)))[start:][:length]
