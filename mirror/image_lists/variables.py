"""Variables in texts: `$NAME`, `${NAME}`, `${NAME:-default}` and their relatives.

Compose files (compose-spec, 12-interpolation.md) and Dockerfiles (reference, "Environment replacement") share them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_OPERATOR = re.compile(r":?[-+?]")
_MAX_DEPTH = 20


class VariableError(Exception):
    """A text has a variable that cannot be replaced; the message says why."""


def expand(text: str, values: Mapping[str, str], escape: str) -> str:
    """Replace the variables of a text.

    Args:
        escape: in front of a `$` it makes that a plain one.

    Raises:
        VariableError: a variable has no value and no default, or the text is malformed.
    """
    return _expand(text, 0, values, escape, 0)[0]


def _expand(text: str, at: int, values: Mapping[str, str], escape: str, depth: int) -> tuple[str, int]:
    """The text up to its end, or inside of braces to the one that closes them, and the place where it ends."""
    if depth > _MAX_DEPTH:
        raise VariableError("variables are nested too deep")
    done: list[str] = []
    while at < len(text) and not (depth and text[at] == "}"):
        if text.startswith(f"{escape}$", at):
            done.append("$")
            at += 2
        elif text[at] == "$":
            value, at = _variable(text, at + 1, values, escape, depth)
            done.append(value)
        else:
            done.append(text[at])
            at += 1
    return "".join(done), at


def _variable(text: str, at: int, values: Mapping[str, str], escape: str, depth: int) -> tuple[str, int]:
    """The value of the variable behind a `$`, and the place behind it."""
    if not text.startswith("{", at):
        name = _name(text, at)
        return _value(name, values), at + len(name)
    name = _name(text, at + 1)
    at += 1 + len(name)
    operator = _OPERATOR.match(text, at)
    word, end = _expand(text, at + len(operator[0]) if operator else at, values, escape, depth + 1)
    if not text.startswith("}", end):
        raise VariableError(f"${{{name} has no closing brace")
    if operator:
        return _chosen(name, operator[0], word, values), end + 1
    if word:
        raise VariableError(f"${{{name}{word}}} is not understood")
    return _value(name, values), end + 1


def _name(text: str, at: int) -> str:
    found = _NAME.match(text, at)
    if not found:
        raise VariableError("a $ stands before no name")
    return found[0]


def _value(name: str, values: Mapping[str, str]) -> str:
    value = values.get(name)
    if value is None:
        raise VariableError(f"{name} is not set and has no default")
    return value


def _chosen(name: str, operator: str, word: str, values: Mapping[str, str]) -> str:
    """What an operator chooses; with a colon an empty value counts as none."""
    value = values.get(name)
    is_set = bool(value) if operator.startswith(":") else value is not None
    if operator.endswith("+"):
        return word if is_set else ""
    if is_set:
        assert value is not None
        return value
    if operator.endswith("?"):
        raise VariableError(f"{name} is not set{f': {word}' if word else ''}")
    return word
