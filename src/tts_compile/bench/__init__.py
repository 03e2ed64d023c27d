"""Measuring against the stock model, in one process, on the same inputs, and saying how sure the figures are."""
