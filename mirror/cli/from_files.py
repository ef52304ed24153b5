"""The option `--from`: images from a compose file, Kubernetes manifests, a Dockerfile or a list."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from dotenv import dotenv_values

from mirror.cli.problems import refuse
from mirror.image_lists.findings import ListedImage
from mirror.image_lists.reader import MAX_BYTES, read

FromOption = Annotated[
    list[str] | None,
    typer.Option(
        "--from",
        metavar="FILE",
        help="Also the images that a compose file, Kubernetes manifests, a Dockerfile or a list with one per line names;"
        " `-` is standard input. Repeat it for several.",
    ),
]

_STDIN = "-"


def images_from(files: Sequence[str]) -> list[ListedImage]:
    """The images that files name, each once. Exits with 2, and every mistake on a line, if there is one in any of them."""
    images: dict[ListedImage, None] = {}
    mistakes: list[str] = []
    for file in files:
        try:
            findings = read("standard input" if file == _STDIN else file, _text(file), _environment(file))
        except (OSError, ValueError) as error:
            mistakes.append(f"{file}: cannot be read: {getattr(error, 'strerror', None) or error}")
            continue
        mistakes += findings.mistakes
        images |= findings.images
        for line in findings.left_out:
            typer.echo(line, err=True)
    if mistakes:
        refuse(mistakes)
    if files and not images:
        refuse([f"{', '.join(files)}: no image is left to fetch"])
    return list(images)


def _text(file: str) -> str:
    """The text of a file; raises OSError or ValueError."""
    if file == _STDIN:
        raw = sys.stdin.buffer.read(MAX_BYTES + 1)
    else:
        with Path(file).open("rb") as opened:
            raw = opened.read(MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        raise ValueError(f"it is larger than {MAX_BYTES >> 20} MiB, and so no list of images")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError("it is not UTF-8") from error


def _environment(file: str) -> Mapping[str, str]:
    """The variables of a compose file: those of the shell, then those of the file `.env` beside it."""
    beside = {} if file == _STDIN else dotenv_values(Path(file).parent / ".env")
    return {**{name: value for name, value in beside.items() if value is not None}, **os.environ}
