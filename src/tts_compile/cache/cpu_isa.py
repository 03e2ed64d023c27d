"""Finds out once for each cache folder which vector instructions work, instead of once in every process."""

from __future__ import annotations

import json
import logging

from .. import _compat
from ..fallback import reason
from ..utils import files
from .folder import VECTORS, folder, using_cache

logger = logging.getLogger(__name__)


def reuse_cpu_isa(cache_dir: str | None = None) -> None:
    """Makes torch use the vector instructions that were found to work, without trying them again.

    Torch tries each kind in a process of its own that imports torch, which takes two seconds in every process that
    compiles for a CPU. Where a kind that the processor names does not work, torch goes on trying.
    """
    cache_folder = folder(cache_dir)
    if _compat.isa_is_known(str(cache_folder)):
        return
    claimed, stored = _compat.listed_isas(), cache_folder / VECTORS
    try:
        found = json.loads(stored.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        try:
            with using_cache(cache_dir):
                found = _compat.working_isas()
        except Exception as error:
            if _compat.is_compile_failure(error):
                return  # compiling fails in the same way and handles it
            raise
        try:
            with files.replaced(stored) as beside:
                beside.write_text(json.dumps(found) + "\n", encoding="utf-8")
        except OSError as error:
            logger.warning("%s cannot be written: %s", stored, reason(error))
    if found == claimed:
        _compat.trust_isa(str(cache_folder))
