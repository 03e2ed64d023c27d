"""Which vector instructions work: tried once for each folder, and not in every process."""

from __future__ import annotations

import json
import logging

from .. import _compat
from ..fallback import reason
from ..utils import files
from .folder import VECTORS, folder, using_cache

logger = logging.getLogger(__name__)


def know_vectors(cache_dir: str | None = None) -> None:
    """Have torch generate code for the vector instructions that were found to work, without trying them again.

    Torch starts a process for each kind, which imports torch: two seconds in every process that compiles for a CPU. It
    goes on doing so where one of those that the processor names does not work.
    """
    place = folder(cache_dir)
    if _compat.vectors_are_known(str(place)):
        return
    claimed, kept = _compat.claimed_vectors(), place / VECTORS
    try:
        found = json.loads(kept.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        try:
            with using_cache(cache_dir):
                found = _compat.tried_vectors()
        except Exception as error:
            if _compat.is_compile_failure(error):
                return  # which compiling meets again, where it is handled
            raise
        try:
            with files.replaced(kept) as beside:
                beside.write_text(json.dumps(found) + "\n", encoding="utf-8")
        except OSError as error:
            logger.warning("%s cannot be written: %s", kept, reason(error))
    if found == claimed:
        _compat.trust_vectors(str(place))
