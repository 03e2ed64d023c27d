"""Makes tokenizers of characters or bytes, with special tokens at the numbers that T3's configuration names."""

from __future__ import annotations

import json
from typing import Any

from ..families import family_named

_ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,!?'\"-()"
# Latin, accents, Greek, Cyrillic, Hebrew, Arabic, Devanagari, Jamo and kana: the model's languages after NFKD.
_SCRIPTS = ((0xA1, 0x180), (0x300, 0x500), (0x590, 0x700), (0x900, 0x980), (0x1100, 0x1200), (0x3000, 0x3100))
_MULTILINGUAL_SIZE = 2454
_TURBO_SIZE = 50276
_END_OF_TEXT = 50256  # GPT-2's number


def english() -> dict[str, str]:
    """Returns the files by name; each character is a token."""
    (name,) = family_named("english").files.others
    return {name: json.dumps(_characters(_ALPHABET, []))}


def multilingual() -> dict[str, str]:
    """Returns the files by name; each character is a token, and so is each language."""
    from chatterbox.mtl_tts import SUPPORTED_LANGUAGES

    scripts = "".join(chr(code) for first, after in _SCRIPTS for code in range(first, after))
    cangjie = [f"[cj_{code}]" for code in "abcdefghijklmnopqrstuvwxyz0123456789."]
    languages = [f"[{language}]" for language in SUPPORTED_LANGUAGES]
    (name,) = family_named("multilingual").files.others
    return {name: json.dumps(_characters(_ALPHABET + scripts, languages + cangjie))}


def turbo() -> dict[str, str]:
    """Returns the files by name; each byte is a token, and unused names fill up GPT-2's vocabulary."""
    from tokenizers.pre_tokenizers import ByteLevel

    vocabulary = {byte: number for number, byte in enumerate(sorted(ByteLevel.alphabet()))}
    vocabulary |= {f"[unused {number}]": number for number in range(len(vocabulary), _TURBO_SIZE)}
    del vocabulary[f"[unused {_END_OF_TEXT}]"]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = _bpe(vocabulary, {"<|endoftext|>": _END_OF_TEXT}) | {"pre_tokenizer": byte_level, "decoder": byte_level}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|endoftext|>",
        "model_max_length": 4096,  # bytes; about 1024 tokens of GPT-2
    }
    (name,) = family_named("turbo").files.others
    return {"tokenizer.json": json.dumps(tokenizer), name: json.dumps(settings)}


def _characters(alphabet: str, more_special: list[str]) -> dict[str, Any]:
    names = ("[STOP]", "[UNK]", "[SPACE]", "[PAD]", "[SEP]", "[CLS]", "[MASK]")
    special = {name: number for number, name in enumerate(names)} | {"[START]": 255}
    special |= {name: 256 + number for number, name in enumerate(more_special)}
    free = (number for number in range(len(names), _MULTILINGUAL_SIZE) if number not in special.values())
    return _bpe(dict(zip(alphabet, free)), special, unknown="[UNK]")


def _bpe(vocabulary: dict[str, int], special: dict[str, int], unknown: str | None = None) -> dict[str, Any]:
    """Returns a model without merges in the format of ``tokenizers``."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": number,
                "special": True,
                "content": content,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
            }
            for content, number in sorted(special.items(), key=lambda item: item[1])
        ],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "model": {"type": "BPE", "unk_token": unknown, "fuse_unk": False, "vocab": special | vocabulary, "merges": []},
    }
