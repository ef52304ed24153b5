"""Stores in all conditions."""

from tests.support.stores import files, layout, small_disk

__all__ = ["files", "layout", "small_disk"]
