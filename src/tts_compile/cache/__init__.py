"""Compiled code on disk: its folder, the machines it is valid for, and archives of it for other machines."""

from .archive import LoadedCache, SavedCache, load_compile_cache, save_compile_cache
from .contents import CacheState, state
from .cpu_isa import reuse_cpu_isa
from .folder import OWN_FOLDER, folder, make_folder, root, using_cache

__all__ = [
    "OWN_FOLDER",
    "CacheState",
    "LoadedCache",
    "SavedCache",
    "folder",
    "load_compile_cache",
    "make_folder",
    "reuse_cpu_isa",
    "root",
    "save_compile_cache",
    "state",
    "using_cache",
]
