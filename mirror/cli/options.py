"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        help="Configuration file. Without it: $MIRROR_CONFIG, ./mirror.yaml, /etc/registry-mirror/mirror.yaml, "
        "or the built-in defaults.",
    ),
]
UrlOption = Annotated[str | None, typer.Option(help="Admin address of the mirror, by default what the configuration says.")]
TokenOption = Annotated[Path | None, typer.Option(help="File with the admin token, by default what the configuration says.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
