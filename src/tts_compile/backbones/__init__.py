"""Steps of transformers over a static cache: one file for each kind of transformer."""
