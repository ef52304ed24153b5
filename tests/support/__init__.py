"""Helpers that tests of every kind share."""
