"""Cuts text into chunks of limited length, at the ends of sentences where possible."""

from __future__ import annotations

import bisect
import itertools
import re
import unicodedata
from collections.abc import Iterator

from .errors import InputError

_SURROGATE = re.compile(r"[\ud800-\udfff]")
_QUOTE = re.compile(r"""["“”„‘’«»‹›()\[\]]""")
# A comma inside a number and a hyphen inside a word end nothing; an em dash and a wide comma need no space.
_CLAUSE_END = re.compile(r"""[,;:]["'”’»)\]]*(?=\s)|(?:(?<=\s)[-–](?=\s)|--+|[—，、；：]+)[”’»)\]]*""")
_WORD_END = re.compile(r"(?<=\S)(?=\s)")
_WORD_AHEAD = re.compile(r"\s*[^\w\s]*\w")
_ZERO_WIDTH_JOINER = "\u200d"


def split_text(text: str, max_chars: int = 300, language: str = "en") -> list[str]:
    r"""Cuts ``text`` into chunks of whole sentences, as many to a chunk as fit.

    >>> split_text("Mr. Smith went home. It rained.", max_chars=20)
    ['Mr. Smith went home.', 'It rained.']
    >>> split_text("One.\n\nTwo, three.")
    ['One.', 'Two, three.']

    A blank line ends a chunk. A sentence that is too long is cut at the first possible point of this list: after a
    sentence quoted in it, after a clause (at a comma, semicolon, colon or dash), at white space, between characters. A
    cut between characters separates no combining mark, variation selector, skin tone, zero-width joiner or closing
    punctuation from the character before it and no surrogate pair, unless these together are longer than a chunk; flags
    and Hangul written in jamo may be cut.

    Args:
        text: any string; lone surrogates too.
        max_chars: upper limit on the characters (code points) of a chunk, at least 1.
        language: ISO 639 code, which selects abbreviations and full stops; English rules apply to an unknown one.

    Returns:
        Slices of ``text`` in its order, none empty or white space alone. They leave out white space alone.

    Raises:
        InputError: lists every argument that is not a text, a whole number from 1 or a language code.
    """
    mistakes = []
    if not isinstance(text, str):
        mistakes.append(f"text must be a string, got {type(text).__name__}")
    if not isinstance(max_chars, int) or isinstance(max_chars, bool) or max_chars < 1:
        mistakes.append(f"max_chars must be a whole number from 1, got {max_chars!r}")
    if not isinstance(language, str) or not language.isascii():
        mistakes.append(f"language must be a code such as 'en', got {language!r}")
    if mistakes:
        raise InputError("; ".join(mistakes))
    lines = text.splitlines(keepends=True)
    paragraphs = ["".join(group).strip() for blank, group in itertools.groupby(lines, str.isspace) if not blank]
    return [chunk for paragraph in paragraphs for chunk in _chunks(paragraph, max_chars, language)]


def _chunks(text: str, max_chars: int, language: str) -> Iterator[str]:
    """Yields the chunks of one paragraph, which neither begins nor ends with white space."""
    if len(text) <= max_chars:
        yield text
        return
    sentences = _sentence_ends(text, language)
    quoted = [end for end in _sentence_ends(_QUOTE.sub(" ", text), language) if not _QUOTE.match(text, end)]
    clauses = [match.end() for match in _CLAUSE_END.finditer(text)]
    words = [match.end() for match in _WORD_END.finditer(text)]
    # A chunk of punctuation alone cannot be spoken: a dash between spaces stays with the word before it where it fits.
    best = [[end for end in ends if _WORD_AHEAD.match(text, end)] for ends in (sentences, quoted, clauses, words)]
    kinds = [[0, *ends] for ends in (*best, words)]
    start = 0
    while len(text) - start > max_chars:
        limit = start + max_chars
        latest = (ends[bisect.bisect(ends, limit) - 1] for ends in kinds)
        end = next((end for end in latest if end > start), _character_end(text, start, limit))
        yield text[start:end]
        start = end
        while text[start].isspace():
            start += 1
    yield text[start:]


def _sentence_ends(text: str, language: str) -> list[int]:
    """Returns ascending positions just behind the last character of each sentence."""
    import sentencex  # here, so that importing the library does not load it

    # sentencex 1.0.32 cannot encode surrogates, and panics at "M\u00a0.": an initial before non-ASCII white space.
    plain = _SURROGATE.sub("\ufffd", re.sub(r"\s", " ", text))
    ends, position = [], 0
    for sentence in sentencex.segment(language, plain):
        if not sentence.isspace():
            ends.append(position + len(sentence.rstrip()))
        position += len(sentence)
    return ends


def _character_end(text: str, start: int, limit: int) -> int:
    """Returns the last position up to ``limit`` between characters that may be separated, or else ``limit``."""
    return next((end for end in range(limit, start, -1) if not _joined(text[end - 1], text[end])), limit)


def _joined(left: str, right: str) -> bool:
    """Returns whether two neighbouring characters must stay in one chunk."""
    return (
        unicodedata.category(right) in ("Mn", "Mc", "Me", "Pe", "Pf", "Po")  # marks, closing punctuation
        or _ZERO_WIDTH_JOINER in (left, right)
        or "\U0001f3fb" <= right <= "\U0001f3ff"  # skin tones
        or ("\ud800" <= left <= "\udbff" and "\udc00" <= right <= "\udfff")
    )
