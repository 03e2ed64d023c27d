"""Loads stock models without the network."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..utils.patch import patched


@contextlib.contextmanager
def nothing_fetched() -> Iterator[None]:
    """Makes the multilingual tokenizer use only files that are on this machine, inside a ``with`` block.

    Its constructor fetches a table of Cangjie codes and a model that segments words, both for Chinese alone. Without
    the table it logs a warning; without the model it raises, unless the model's library is missing too. It must not be
    used from several threads at a time.
    """
    from chatterbox.models.tokenizers import tokenizer

    converter = tokenizer.ChineseCangjieConverter
    init_segmenter = converter._init_segmenter

    def init_segmenter_from_disk(self: Any) -> None:
        home = Path(os.environ.get("PKUSEG_HOME", "~/.pkuseg")).expanduser()  # the folder that spacy_pkuseg reads
        if (home / "spacy_ontonotes.zip").is_file():
            init_segmenter(self)
        else:
            self.segmenter = None

    local = functools.partial(tokenizer.hf_hub_download, local_files_only=True)
    with (
        patched(tokenizer, "hf_hub_download", local),
        patched(converter, "_init_segmenter", init_segmenter_from_disk),
    ):
        yield
