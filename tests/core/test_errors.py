"""Errors name what was wrong without letting the sender fill the log."""

import pytest

from mirror.core import errors


def _all(base: type[Exception]) -> list[type[Exception]]:
    return [cls for sub in base.__subclasses__() for cls in (sub, *_all(sub))]


@pytest.mark.parametrize("cls", [cls for cls in _all(errors.InvalidInput) if cls.__module__.startswith("mirror.core.")])
def test_every_error_is_a_value_error_of_one_base(cls):
    """Every error of the core is a ValueError, and its message names value and reason."""
    error = cls("bad\n", "because")
    assert isinstance(error, ValueError)
    assert "'bad\\n'" in str(error)
    assert str(error).endswith(": because")


@pytest.mark.parametrize("value", ["x" * 10_000, b"\0" * 10_000, "é\n" * 99, ["x"] * 1000])
def test_long_values_are_shortened(value):
    """A value of any length takes at most 100 characters of the message."""
    shown = errors.shortened(value)
    assert len(shown) == 100
    assert shown.endswith("…")
    assert "\n" not in shown


def test_short_values_are_shown_whole():
    """A value that fits is shown as it is."""
    assert errors.shortened("nginx") == "'nginx'"
