"""Dockerfiles: the images that a build takes (docs.docker.com/reference/dockerfile)."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field

from mirror.image_lists.findings import Findings, shown
from mirror.image_lists.variables import VariableError, expand

_DIRECTIVE = re.compile(r"#\s*(?P<name>[A-Za-z][A-Za-z0-9-]*)\s*=\s*(?P<value>\S.*?)\s*$")
_HEREDOC = re.compile(r"(?<!<)<<(?!<)-?\s*[\"']?(?P<word>[A-Za-z_][A-Za-z0-9_]*)[\"']?")
_MOUNT_SOURCE = re.compile(r"--mount=\S*?\bfrom=(?P<source>[^,\s]+)")
_COPY_SOURCE = re.compile(r"--from=(?P<source>\S+)")
# BuildKit sets these to what it builds on and for.
_PLATFORM_ARGUMENTS = re.compile(r"\$\{?(BUILD|TARGET)(PLATFORM|OS|ARCH|VARIANT)\b")


@dataclass(slots=True)
class _Build:
    """What is known at one place of a Dockerfile.

    Attributes:
        arguments: those before the first stage, by name.
        stages: names of the stages so far, in lower case.
        count: of the stages.
    """

    arguments: dict[str, str] = field(default_factory=dict)
    stages: set[str] = field(default_factory=set)
    count: int = 0


def read(text: str, findings: Findings) -> None:
    """Find the images of a Dockerfile: of its stages, of `COPY --from` and `RUN --mount`, and its frontend."""
    build = _Build()
    for line, instruction, rest in _instructions(text, findings):
        if instruction == "FROM":
            _stage(line, rest, build, findings)
        elif instruction == "ARG" and not build.count:
            _argument(line, rest, build, findings)
        elif instruction in ("COPY", "RUN"):
            pattern = _COPY_SOURCE if instruction == "COPY" else _MOUNT_SOURCE
            for found in pattern.finditer(rest):
                _source(line, found["source"], build, findings)
    if not build.count and not findings.mistakes:
        findings.mistake(1, "there is no FROM")


def _stage(line: int, rest: str, build: _Build, findings: Findings) -> None:
    words, platform = rest.split(), None
    while words and words[0].startswith("--"):
        name, _, value = words.pop(0).partition("=")
        platform = value if name == "--platform" else platform
    if len(words) not in (1, 3) or (len(words) == 3 and words[1].lower() != "as"):
        findings.mistake(line, f"FROM takes an image, and perhaps AS and a name, not {shown(rest)}")
    else:
        _base(line, words[0], platform, build, findings)
    build.count += 1
    if len(words) == 3:
        build.stages.add(words[2].lower())


def _base(line: int, image: str, platform: str | None, build: _Build, findings: Findings) -> None:
    try:
        name = expand(image, build.arguments, "\\")
        if platform is not None:
            platform = None if _PLATFORM_ARGUMENTS.search(platform) else expand(platform, build.arguments, "\\")
    except VariableError as error:
        findings.mistake(line, str(error))
        return
    if name.lower() not in build.stages and name != "scratch":
        findings.add(line, name, platform or None)


def _argument(line: int, rest: str, build: _Build, findings: Findings) -> None:
    try:
        words = shlex.split(rest)
    except ValueError as error:
        findings.mistake(line, f"ARG {shown(rest)}: {error}")
        return
    for word in words:
        name, is_set, value = word.partition("=")
        if is_set:
            try:
                build.arguments[name] = expand(value, build.arguments, "\\")
            except VariableError as error:
                findings.mistake(line, str(error))


def _source(line: int, source: str, build: _Build, findings: Findings) -> None:
    """An image, unless it is the name or the number of a stage."""
    if source.lower() not in build.stages and not source.isdecimal():
        findings.add(line, source)


def _instructions(text: str, findings: Findings) -> Iterator[tuple[int, str, str]]:
    """The instructions: the line where each begins, its name in upper case, and what follows it on one line."""
    lines = text.splitlines()
    first, escape = _directives(lines, findings)
    number = first
    while number < len(lines):
        began, parts = number, list[str]()
        while number < len(lines):
            line, number = lines[number].strip(), number + 1
            # Comments and empty lines neither begin nor end an instruction.
            if line and not line.startswith("#"):
                began = began if parts else number
                parts.append(line.removesuffix(escape))
                if not line.endswith(escape):
                    break
        instruction, _, rest = " ".join(parts).strip().partition(" ")
        if instruction:
            yield began, instruction.upper(), rest.strip()
        if instruction.upper() in ("RUN", "COPY", "ADD"):
            number = _after_heredocs(lines, number, rest)


def _directives(lines: list[str], findings: Findings) -> tuple[int, str]:
    """Read the parser directives at the beginning; returns the first line behind them, and the escape character."""
    escape, at = "\\", 0
    while at < len(lines) and (found := _DIRECTIVE.match(lines[at].strip())):
        name, value = found["name"].lower(), found["value"]
        if name == "escape":
            escape = value
        elif name == "syntax":
            findings.add(at + 1, value)
        at += 1
    return at, escape


def _after_heredocs(lines: list[str], number: int, rest: str) -> int:
    """The line behind the here-documents that an instruction begins."""
    for found in _HEREDOC.finditer(rest):
        end = next((at for at in range(number, len(lines)) if lines[at].strip() == found["word"]), None)
        # Without an end it was something else, such as a shift in a shell's arithmetic.
        number = number if end is None else end + 1
    return number
