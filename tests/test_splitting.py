from __future__ import annotations

import re
import unicodedata
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tts_compile import InputError
from tts_compile.splitting import split_text

# Names, initials and full stops beside white space of every kind are where sentencex 1.0.32 would panic.
PIECES = [
    *(
        "Mr.",
        "M",
        ".",
        "! ",
        "? ",
        ", ",
        "; ",
        " - ",
        "—",
        "“",
        "”",
        '"',
        "(",
        ")",
        "word",
        "naïve",
        "世界",
        "。",
        "，",
    ),
    *("\n", "\n\n", "\r\n", "\r", "\t", "\x0b", "\x1c", "\x1f", "\x85", "\xa0", "\u2028", "\u2029", "\u3000", " "),
    *("\ud800", "\udc00", "e\u0301", "\u0301", "\U0001f468\u200d\U0001f469", "\U0001f44d\U0001f3fd", "\x00", "3,000"),
]
texts = st.text(st.characters(), max_size=60) | st.lists(st.sampled_from(PIECES), max_size=60).map("".join)
languages = st.sampled_from(["en", "de", "fr", "ja", "zh", "he", "hi", "ru", "tlh", ""])
SENTENCES = ["It rained.", "Mr. Smith went home at 5.30 p.m. yesterday.", "Why?", "He said “No. Never.” to her.", "No!"]


def ink(text: str) -> str:
    return "".join(text.split())


@settings(max_examples=400, deadline=None)
@given(texts, st.integers(1, 40), languages)
def test_nothing_is_lost_and_no_chunk_is_long_or_blank(text: str, max_chars: int, language: str) -> None:
    chunks = split_text(text, max_chars, language)
    assert ink("".join(chunks)) == ink(text)
    assert all(0 < len(chunk) <= max_chars and chunk == chunk.strip() for chunk in chunks)
    place = 0
    for chunk in chunks:  # each is a slice of the text, in its order
        place = text.index(chunk, place) + len(chunk)


@settings(max_examples=100, deadline=None)
@given(st.lists(texts.map(lambda text: " ".join(text.split())), max_size=4), st.integers(1, 40))
def test_no_chunk_crosses_a_blank_line(paragraphs: list[str], max_chars: int) -> None:
    alone = [chunk for paragraph in paragraphs for chunk in split_text(paragraph, max_chars)]
    for blank in ("\n\n", "\r\n\r\n", "\n \t\xa0\n", "\n\n\n\n"):
        assert split_text(blank.join(paragraphs), max_chars) == alone


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(SENTENCES), max_size=12), st.integers(50, 120))
def test_whole_sentences_are_packed_while_they_fit(sentences: list[str], max_chars: int) -> None:
    packed: list[str] = []
    for sentence in sentences:
        if packed and len(packed[-1]) + 1 + len(sentence) <= max_chars:
            packed[-1] += " " + sentence
        else:
            packed.append(sentence)
    assert split_text(" ".join(sentences), max_chars) == packed


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["so", "they", "3,000", "well-known", "went,", "home;", "he –", "on &"]), max_size=40))
def test_a_long_sentence_is_cut_after_the_last_clause_that_fits_else_the_last_word(words: list[str]) -> None:
    text = " ".join(words)
    chunks = split_text(text, 20)
    assert " ".join(chunks) == text  # never inside a word or a number
    assert all(re.search(r"\w", chunk) for chunk in chunks)  # nor before a mark alone
    clauses = [m.end() for m in re.finditer(r"[,;–](?= )", text)]
    plain = [m.start() for m in re.finditer(r" (?![–&])", text)]
    place = 0
    for chunk in chunks[:-1]:
        near = [[end - place for end in ends if 0 < end - place <= 20] for ends in (clauses, plain)]
        assert len(chunk) == (near[0] or near[1])[-1]
        place += len(chunk) + 1


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.sampled_from(["e\u0301\u0323", "a", "\U0001f468\u200d\U0001f469", "\ud83d\ude00", "\U0001f44d\U0001f3fd"])
    )
)
def test_characters_of_several_code_points_stay_whole(characters: list[str]) -> None:
    for chunk in split_text("".join(characters), 3):
        assert not unicodedata.category(chunk[0]).startswith("M")
        assert "\u200d" not in (chunk[0], chunk[-1])
        assert not "\ud800" <= chunk[-1] <= "\udbff"
        assert chunk[0] != "\U0001f3fd"


@pytest.mark.parametrize(
    ("text", "max_chars", "expected"),
    [
        ("", 5, []),
        (" \n\t\xa0 ", 5, []),
        ("Mr. Smith went home. It rained.", 20, ["Mr. Smith went home.", "It rained."]),
        ("Mr.\nSmith went home. It rained.", 20, ["Mr.\nSmith went home.", "It rained."]),
        ("One. Two. Three.", 9, ["One. Two.", "Three."]),
        ("Hear: 3,000 men came, and went.", 22, ["Hear: 3,000 men came,", "and went."]),
        ("we came—and then we went", 16, ["we came—", "and then we went"]),
        ("世界你好，世界你好，世界。", 10, ["世界你好，世界你好，", "世界。"]),
        ("世界世界世，世界世界世。", 5, ["世界世界", "世，", "世界世界", "世。"]),
        ("Il est parti\xa0! Oui\xa0?", 12, ["Il est", "parti\xa0!", "Oui\xa0?"]),
        ("supercalifragilistic", 8, ["supercal", "ifragili", "stic"]),
        ("e\u0301\u0301\u0301", 2, ["e\u0301", "\u0301\u0301"]),  # longer than a chunk alone
        ("“你好。世界！”他说，走了。", 7, ["“你好。", "世界！”", "他说，走了。"]),
        # sentences in a quotation end chunks too, but no title does, and no quotation mark begins one
        (
            "“I came. I saw Mr. Smith, who left. I went.” He, too.",
            40,
            ["“I came. I saw Mr. Smith, who left.", "I went.” He, too."],
        ),
    ],
)
def test_examples(text: str, max_chars: int, expected: list[str]) -> None:
    assert split_text(text, max_chars) == expected


def test_language_matters() -> None:
    text = "Was bzw. Karl am 3. Oktober sagt. Gut."
    assert split_text(text, 34, "de") == ["Was bzw. Karl am 3. Oktober sagt.", "Gut."]
    assert split_text(text, 18, "de") == ["Was bzw. Karl am", "3. Oktober sagt.", "Gut."]
    assert split_text(text, 18, "en")[0] == "Was bzw."


def test_a_long_text_is_quick_and_whole() -> None:
    text = "Mr. Smith’s dog—été, 世界—went “home. And” slept. " * 2000
    chunks = split_text(text)
    assert ink("".join(chunks)) == ink(text)
    assert max(map(len, chunks)) <= 300
    assert all(chunk.endswith("slept.") for chunk in chunks)


@pytest.mark.parametrize("text", ["M\xa0.", "M\u2029. a", "Dr\u3000M\u3000.b", "\ud800", "a\udfff. B"])
def test_what_sentencex_itself_cannot_read(text: str) -> None:
    assert ink("".join(split_text(text, 2))) == ink(text)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({"text": None}, "text"),
        ({"text": b"a"}, "text"),
        ({"text": ["a"]}, "text"),
        ({"max_chars": 0}, "max_chars"),
        ({"max_chars": -3}, "max_chars"),
        ({"max_chars": 2.0}, "max_chars"),
        ({"max_chars": True}, "max_chars"),
        ({"max_chars": "9"}, "max_chars"),
        ({"language": None}, "language"),
        ({"language": "\ud800"}, "language"),
        ({"text": 1, "max_chars": 0, "language": 2}, "text.*max_chars.*language"),
    ],
)
def test_bad_input(arguments: dict[str, Any], part: str) -> None:
    with pytest.raises(InputError, match=part):
        split_text(**{"text": "a", **arguments})
