"""Makes tokenizers of characters or bytes, with special tokens at the numbers that T3's configuration names."""

from __future__ import annotations

import json
from typing import Any

from ..families import family_named

_ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,!?'\"-()"
# Latin, accents, Greek, Cyrillic, Hebrew, Arabic, Devanagari, Jamo and kana: the model's languages after NFKD.
_SCRIPTS = ((0xA1, 0x180), (0x300, 0x500), (0x590, 0x700), (0x900, 0x980), (0x1100, 0x1200), (0x3000, 0x3100))


def english() -> dict[str, str]:
    """Returns the files by name; each character is a token."""
    (name,) = family_named("english").files.others
    return {name: _characters(_ALPHABET, [], 704)}


def multilingual() -> dict[str, str]:
    """Returns the files by name; each character is a token, and so is each language."""
    from chatterbox.mtl_tts import SUPPORTED_LANGUAGES

    scripts = "".join(chr(code) for first, after in _SCRIPTS for code in range(first, after))
    cangjie = [f"[cj_{code}]" for code in "abcdefghijklmnopqrstuvwxyz0123456789."]
    languages = [f"[{language}]" for language in SUPPORTED_LANGUAGES]
    (name,) = family_named("multilingual").files.others
    return {name: _characters(_ALPHABET + scripts, languages + cangjie, 2454)}


def turbo() -> dict[str, str]:
    """Returns the files by name; each byte is a token, and unused names fill up GPT-2's vocabulary."""
    from tokenizers import decoders, pre_tokenizers

    vocabulary = {byte: number for number, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = _bpe(vocabulary, {"<|endoftext|>": 50256}, 50276)  # GPT-2's number; Turbo's size
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|endoftext|>",
        "model_max_length": 4096,  # bytes; about 1024 tokens of GPT-2
    }
    (name,) = family_named("turbo").files.others
    return {"tokenizer.json": tokenizer.to_str(), name: json.dumps(settings)}


def _characters(alphabet: str, more_special: list[str], size: int) -> str:
    names = ("[STOP]", "[UNK]", "[SPACE]", "[PAD]", "[SEP]", "[CLS]", "[MASK]")
    special = {name: number for number, name in enumerate(names)} | {"[START]": 255}
    special |= {name: 256 + number for number, name in enumerate(more_special)}
    free = (number for number in range(size) if number not in special.values())
    return str(_bpe(dict(zip(alphabet, free)), special, size, unk_token="[UNK]").to_str())


def _bpe(vocabulary: dict[str, int], special: dict[str, int], size: int, **options: Any) -> Any:
    """Returns a tokenizer without merges, whose special tokens keep their numbers; free numbers get unused names."""
    from tokenizers import Tokenizer, models

    taken = special | vocabulary
    unused = {*range(size)}.difference(taken.values())
    tokenizer = Tokenizer(models.BPE(taken | {f"[unused {number}]": number for number in unused}, [], **options))
    tokenizer.add_special_tokens(list(special))
    return tokenizer
