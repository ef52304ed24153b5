"""Reads the sources of the configuration, a YAML file and the environment, into nested mappings."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml

from mirror.errors import ConfigurationError

_PREFIX = "MIRROR__"


class _Loader(yaml.SafeLoader):
    """Refuses duplicate keys: YAML would silently ignore one of the two."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, Hashable):
                raise yaml.YAMLError(f"the key in line {line} is no text")
            if key in seen:
                raise ConfigurationError([f"{key}: stands there twice, the second time in line {line}"])
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_file(path: Path | None) -> dict[str, Any]:
    """Read a file; empty for None.

    Raises:
        ConfigurationError: the file cannot be read, or is not a mapping in YAML.
    """
    if path is None:
        return {}
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError([f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}"]) from error
    try:
        # _Loader is a SafeLoader.
        value = yaml.load(text, _Loader)  # noqa: S506
    except yaml.YAMLError as error:
        where = " ".join(str(error).split()).replace('in "<unicode string>", ', "in ")
        raise ConfigurationError([f"{path}: is not YAML: {where}"]) from error
    except RecursionError as error:
        raise ConfigurationError([f"{path}: is nested too deep"]) from error
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ConfigurationError([f"{path}: must be a mapping of keys to values"])
    return value


def read_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """Read the environment: `MIRROR__STORAGE__PATH=x` is `storage: {path: x}`.

    A value in brackets or braces is read as YAML; any other is text.

    Raises:
        ConfigurationError: a value is not YAML, or is text for a section.
    """
    found: dict[str, Any] = {}
    for name in sorted(environment):
        if name.startswith(_PREFIX):
            *sections, key = name.removeprefix(_PREFIX).lower().split("__")
            place = found
            for section in sections:
                place = place.setdefault(section, {})
                if not isinstance(place, dict):
                    raise ConfigurationError([f"{name}: a key above it is set to text"])
            place[key] = _value(name, environment[name])
    return found


def _value(name: str, text: str) -> Any:
    if (text[:1], text[-1:]) not in (("[", "]"), ("{", "}")):
        return text
    try:
        # _Loader is a SafeLoader.
        return yaml.load(text, _Loader)  # noqa: S506
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigurationError([f"{name}: is not YAML"]) from error
