"""Stock's loading without the network."""

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
    """Have the multilingual tokenizer make do with what this machine has; undone on exit.

    Its constructor fetches a table of Cangjie codes and a model that segments words, both for Chinese alone. Without
    the table it logs a warning, without the model it raises, unless its library is missing too. Not for use from
    several threads.
    """
    from chatterbox.models.tokenizers import tokenizer

    converter = tokenizer.ChineseCangjieConverter
    init_segmenter = converter._init_segmenter

    def segmenter_if_at_hand(self: Any) -> None:
        home = Path(os.environ.get("PKUSEG_HOME", "~/.pkuseg")).expanduser()  # as spacy_pkuseg looks for it
        if (home / "spacy_ontonotes.zip").is_file():
            init_segmenter(self)
        else:
            self.segmenter = None

    local = functools.partial(tokenizer.hf_hub_download, local_files_only=True)
    with (
        patched(tokenizer, "hf_hub_download", local),
        patched(converter, "_init_segmenter", segmenter_if_at_hand),
    ):
        yield
