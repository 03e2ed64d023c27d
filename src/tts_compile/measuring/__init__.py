"""Measurement of calls that alternate, with intervals, and the judgement of what ran."""
