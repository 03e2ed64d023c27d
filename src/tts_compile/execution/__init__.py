"""Execution of tensor functions, compiled or captured, with counts that prove it."""

from .region import CompileOptions, Region, dynamic

__all__ = ["CompileOptions", "Region", "dynamic"]
