"""Kubernetes manifests: the images of all containers and image volumes, of built-in and of custom kinds."""

from __future__ import annotations

import yaml

from mirror.image_lists.findings import Findings
from mirror.image_lists.nodes import entries, is_text, items, line_of

_CONTAINERS = ("initContainers", "containers", "ephemeralContainers")


def is_manifest(document: yaml.Node, findings: Findings) -> bool:
    """Whether a document is a Kubernetes object."""
    return {"apiVersion", "kind"} <= entries(document, findings).keys()


def read(document: yaml.Node, findings: Findings) -> None:
    """Find the images of an object, wherever a pod's template stands in it."""
    # By identity: what aliases name again is looked at once, or nested aliases would take for ever.
    waiting, seen = [document], {id(document)}
    while waiting:
        node = waiting.pop()
        found = entries(node, findings)
        for key in _CONTAINERS:
            for container in items(found.get(key)):
                _add(entries(container, findings).get("image"), findings)
        for volume in items(found.get("volumes")):
            _add(entries(entries(volume, findings).get("image"), findings).get("reference"), findings)
        for inner in reversed([*found.values(), *items(node)]):
            if id(inner) not in seen:
                seen.add(id(inner))
                waiting.append(inner)


def _add(image: yaml.Node | None, findings: Findings) -> None:
    if is_text(image):
        findings.add(line_of(image), image.value)
