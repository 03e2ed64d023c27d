"""Loading a checkpoint through the stock classes, without the work whose result is thrown away."""

from .model import DTYPES, load_model, load_pretrained, stock_class

__all__ = ["DTYPES", "load_model", "load_pretrained", "stock_class"]
