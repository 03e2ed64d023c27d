"""Reads, writes and synthesises recordings."""
