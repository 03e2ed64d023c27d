"""Measurement of calls that alternate, with intervals."""
