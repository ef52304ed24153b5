"""Compose files (compose-spec, 05-services.md): the images of all services, whatever their profiles."""

from __future__ import annotations

from collections.abc import Mapping

import yaml

from mirror.image_lists.findings import Findings
from mirror.image_lists.nodes import entries, is_text, items, line_of
from mirror.image_lists.variables import VariableError, expand


def is_compose(document: yaml.Node, findings: Findings) -> bool:
    """Whether a document is a compose file."""
    found = entries(document, findings)
    return "services" in found or "include" in found


def read(document: yaml.Node, environment: Mapping[str, str], findings: Findings) -> None:
    """Find the images of a compose file.

    Args:
        environment: the values of variables.
    """
    top = entries(document, findings)
    if "include" in top:
        for item in items(top["include"]) or [top["include"]]:
            findings.leave_out(line_of(item), "an included file is not read: name it as well")
    if "services" in top and not isinstance(top["services"], yaml.MappingNode) and is_text(top["services"]):
        findings.mistake(line_of(top["services"]), "services has to be a mapping")
    for name, service in entries(top.get("services"), findings).items():
        _service(name, service, environment, findings)


def _service(name: str, service: yaml.Node, environment: Mapping[str, str], findings: Findings) -> None:
    found = entries(service, findings)
    image, extended = found.get("image"), entries(found.get("extends"), findings)
    if "build" in found:
        findings.leave_out(line_of(service), f"service {name} is built: its Dockerfile names what that takes")
    elif "file" in extended and image is None:
        findings.leave_out(line_of(service), f"service {name} extends one of another file, which is not read: name it as well")
    elif image is not None and not is_text(image):
        findings.mistake(line_of(image), f"the image of service {name} has to be text")
    elif is_text(image):
        _add(image, found.get("platform"), environment, findings)
    elif "extends" not in found and "provider" not in found:
        findings.mistake(line_of(service), f"service {name} has no image")


def _add(image: yaml.ScalarNode, platform: yaml.Node | None, environment: Mapping[str, str], findings: Findings) -> None:
    try:
        name = expand(image.value, environment, "$")
        wanted = expand(platform.value, environment, "$") if is_text(platform) else None
    except VariableError as error:
        findings.mistake(line_of(image), str(error))
    else:
        findings.add(line_of(image), name, wanted or None)
