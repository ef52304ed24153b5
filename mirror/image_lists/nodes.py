"""YAML as nodes that know their lines, with merge keys resolved (yaml.org/type/merge.html)."""

from __future__ import annotations

from typing import TypeGuard

import yaml

from mirror.image_lists.findings import Findings, shown

# libyaml parses ten times as fast, and bounds the depth.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_MERGE = "<<"
_MAX_MERGES = 1000


def documents(text: str, findings: Findings) -> list[yaml.Node]:
    """The documents of a stream that are not empty; text that is not YAML is a mistake."""
    try:
        return [node for node in yaml.compose_all(text, _LOADER) if not _is_null(node)]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        findings.mistake(mark.line + 1 if mark else 1, f"is not YAML: {error.problem or error.context}")
    except yaml.YAMLError as error:
        findings.mistake(1, f"is not YAML: {' '.join(str(error).split())}")
    except RecursionError:
        findings.mistake(1, "is nested too deep")
    return []


def line_of(node: yaml.Node) -> int:
    """The line where a node begins, from 1."""
    return int(node.start_mark.line) + 1


def is_text(node: yaml.Node | None) -> TypeGuard[yaml.ScalarNode]:
    """Whether a node is a scalar with a value."""
    return isinstance(node, yaml.ScalarNode) and not _is_null(node)


def entries(node: yaml.Node | None, findings: Findings) -> dict[str, yaml.Node]:
    """The entries of a mapping by their keys; empty for anything else. A key that stands there twice is a mistake."""
    if not isinstance(node, yaml.MappingNode):
        return {}
    found: dict[str, yaml.Node] = {}
    for key, value in node.value:
        name = key.value if isinstance(key, yaml.ScalarNode) else None
        if name is None or name == _MERGE:
            continue
        if name in found:
            findings.mistake(line_of(key), f"the key {shown(name)} stands there twice")
        found[name] = value
    for merged in _merged(node):
        for key, value in merged.value:
            if isinstance(key, yaml.ScalarNode) and key.value != _MERGE:
                found.setdefault(key.value, value)
    return found


def items(node: yaml.Node | None) -> list[yaml.Node]:
    """The items of a sequence; empty for anything else."""
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _merged(node: yaml.MappingNode) -> list[yaml.MappingNode]:
    """The mappings that a mapping merges, directly or through others, the first one first; each once."""
    waiting, found = _merge_values(node), dict[int, yaml.MappingNode]()
    while waiting and len(found) < _MAX_MERGES:
        value = waiting.pop(0)
        if isinstance(value, yaml.MappingNode) and id(value) not in found and value is not node:
            found[id(value)] = value
            waiting = _merge_values(value) + waiting
    return list(found.values())


def _merge_values(node: yaml.MappingNode) -> list[yaml.Node]:
    values = [value for key, value in node.value if isinstance(key, yaml.ScalarNode) and key.value == _MERGE]
    return [one for value in values for one in (value.value if isinstance(value, yaml.SequenceNode) else [value])]


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"
