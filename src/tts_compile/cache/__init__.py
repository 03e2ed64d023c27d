"""Compiled code on disk: its folder, the machines it is valid for, and archives of it for other machines."""

from .archive import LoadedCache, SavedCache, load_compile_cache, save_compile_cache
from .contents import CacheState, FileCount, OtherCache, state
from .cpu_isa import know_vectors
from .folder import OURS, folder, made, root, using_cache

__all__ = [
    "OURS",
    "CacheState",
    "FileCount",
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
