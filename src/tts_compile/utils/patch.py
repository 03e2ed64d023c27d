"""Attributes and mappings that are changed inside a block."""

from unittest import mock

# patched(owner, name, value) sets an attribute of a module, a class or an object inside a ``with`` block.
patched = mock.patch.object
# patched_items(mapping, changes) sets items; any other change to the mapping in the block is undone too.
patched_items = mock.patch.dict
