"""Mistakes in the configuration, in words: the key as it stands in the file, and what it has to be in YAML."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel

# By pydantic's types of errors (pydantic documentation, Validation errors).
_EXPECTED = {
    **dict.fromkeys(("int_parsing", "int_type", "int_from_float", "int_parsing_size"), "must be a whole number"),
    **dict.fromkeys(("bool_parsing", "bool_type"), "must be true or false"),
    **dict.fromkeys(("list_type", "tuple_type", "frozen_set_type", "set_type"), "must be a list, for example [a, b]"),
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "must be a mapping of keys to values"),
    "string_type": "must be text",
    "path_type": "must be a path",
    "missing": "is required",
}
_WITH_LIMIT = {
    "literal_error": "must be {expected}",
    "greater_than_equal": "must be at least {ge:g}",
    "greater_than": "must be more than {gt:g}",
    "less_than_equal": "must be at most {le:g}",
    "less_than": "must be less than {lt:g}",
    "too_short": "must have at least {min_length} of them",
}


def describe(error: Mapping[str, Any], root: type[BaseModel]) -> str:
    """Return the line of a validation error.

    Args:
        error: one of `ValidationError.errors()`.
        root: the model of the whole file.
    """
    place = tuple(error["loc"])
    key = ".".join(str(part) for part in place) or "configuration"
    kind = error["type"]
    if kind == "extra_forbidden":
        return f"{key}: there is no such key{_hint(place, root)}"
    if kind in _WITH_LIMIT:
        return f"{key}: {_WITH_LIMIT[kind].format(**error['ctx'])}"
    return f"{key}: {_EXPECTED.get(kind) or error['msg'].removeprefix('Value error, ')}"


def misnamed_variables(environment: Iterable[str], root: type[BaseModel]) -> list[str]:
    """Return a line for each variable that names a key, but joins its parts by one underscore instead of two.

    Other variables that begin with MIRROR_ are not meant for the mirror: Kubernetes sets some for a service of that name.
    """
    keys = {f"MIRROR_{'_'.join(path)}".upper(): f"MIRROR__{'__'.join(path)}".upper() for path in _paths(root)}
    return [f"{name}: is not read; did you mean {keys[name.upper()]}?" for name in sorted(environment) if name.upper() in keys]


def _hint(place: tuple[str | int, ...], root: type[BaseModel]) -> str:
    section, name = root, str(place[-1])
    for part in place[:-1]:
        # A number or the name of a registry leads to an entry of the same section.
        field = section.model_fields.get(str(part))
        section = section if field is None else _section(field.annotation) or section
    close = get_close_matches(name, section.model_fields, 1)
    elsewhere = [".".join(path) for path in _paths(root) if path[-1] == name]
    above = ".".join(str(part) for part in place[:-1])
    if elsewhere:
        return f"; did you mean {elsewhere[0]}?"
    if close:
        return f"; did you mean {above}.{close[0]}?" if above else f"; did you mean {close[0]}?"
    return ""


def _section(annotation: Any) -> type[BaseModel] | None:
    """Return the section that a key holds, by itself, in a list or in a mapping; None if it holds a value."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section(part)) is not None), None)


def _paths(section: type[BaseModel], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the keys of the sections that are neither in a list nor in a mapping."""
    for name, field in section.model_fields.items():
        yield (*above, name)
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from _paths(annotation, (*above, name))
