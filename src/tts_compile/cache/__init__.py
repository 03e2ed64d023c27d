"""Compiled code on disk: where it is kept, what it is valid for, and how it moves to another machine."""

from .archive import LoadedCache, SavedCache, load_compile_cache, save_compile_cache
from .contents import CacheState, Kept, OtherCache, state
from .cpu_isa import know_vectors
from .folder import OURS, folder, made, root, using_cache

__all__ = [
    "OURS",
    "CacheState",
    "Kept",
    "LoadedCache",
    "OtherCache",
    "SavedCache",
    "folder",
    "know_vectors",
    "load_compile_cache",
    "made",
    "root",
    "save_compile_cache",
    "state",
    "using_cache",
]
