"""Small helpers that any module may import; they import only ``errors`` and ``_compat``."""
