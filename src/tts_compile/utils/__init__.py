"""Leaves that every room may use."""
