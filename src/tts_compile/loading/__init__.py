"""Loading a checkpoint through the stock classes, without the work whose result is thrown away."""

from .half_precision import DTYPES
from .imports import stock_class
from .model import load_model, load_pretrained

__all__ = ["DTYPES", "load_model", "load_pretrained", "stock_class"]
