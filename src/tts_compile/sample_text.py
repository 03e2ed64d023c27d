"""Built-in text of any length."""

from __future__ import annotations

TEXT = "The quick brown fox jumps over the lazy dog, and then it takes a long nap in the warm sun."
_PROSE = TEXT + (
    " Seven wizards jog past the old mill and vex five bold gnomes, who would rather have been left alone with their "
    "tea. "
)


def prose(length: int, start: int = 0) -> str:
    """Returns ``length`` characters of the built-in text, repeated as needed, from character ``start`` on."""
    return (_PROSE * (2 + (start + length) // len(_PROSE)))[start:][:length]
