"""Reads a file of any of the kinds, by its name and its content."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePath

from mirror.image_lists import compose, dockerfile, kubernetes, plain
from mirror.image_lists.findings import Findings
from mirror.image_lists.nodes import documents, line_of

MAX_BYTES = 8 << 20
"""A larger file is no list of images."""

_DOCKERFILE = re.compile(r"(docker|container)file(\..*)?|.*\.(docker|container)file", re.IGNORECASE)
_YAML = (".yaml", ".yml", ".json")


def read(name: str, text: str, environment: Mapping[str, str]) -> Findings:
    """Find the images that a file names.

    Args:
        name: of the file, for messages and for its kind.
        environment: the values of variables in a compose file.
    """
    findings, base, first = Findings(name), PurePath(name).name, _first_word(text)
    if _DOCKERFILE.fullmatch(base) or first.upper() in ("FROM", "ARG"):
        dockerfile.read(text, findings)
    elif base.lower().endswith(_YAML) or first.startswith(("---", "{")) or first.endswith(":"):
        _read_yaml(text, environment, findings)
    else:
        plain.read(text, findings)
    if not findings.images and not findings.mistakes and not findings.left_out:
        findings.mistake(1, "no image is named here")
    return findings


def _read_yaml(text: str, environment: Mapping[str, str], findings: Findings) -> None:
    for document in documents(text, findings):
        if kubernetes.is_manifest(document, findings):
            kubernetes.read(document, findings)
        elif compose.is_compose(document, findings):
            compose.read(document, environment, findings)
        else:
            findings.mistake(line_of(document), "is neither a compose file nor a Kubernetes manifest")


def _first_word(text: str) -> str:
    """The first word that is not in a comment."""
    lines = (line.split(maxsplit=1) for line in text.splitlines() if not line.lstrip().startswith("#"))
    return next((words[0] for words in lines if words), "")
