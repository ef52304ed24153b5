"""The command `release`, which lets tags through that are held back."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from mirror.cli.client import AdminClient
from mirror.cli.options import ConfigOption, JsonOption, TokenOption, UrlOption


def release(
    image: Annotated[list[str], typer.Argument(help="Which images: `nginx:1.27`, `library/*:1.*`, `nginx@sha256:…`.")],
    config: ConfigOption = None,
    url: UrlOption = None,
    token_file: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let tags through now that a cool-down or a freeze holds back; `status` lists them.

    Only the digests that are held back now are let through: a later move is held back again. The exit status is 1, and nothing is
    released, if an image is not held back.
    """
    done = AdminClient(config, url, token_file).request("POST", "/api/v1/release", {"images": image})
    if as_json:
        typer.echo(json.dumps(done, indent=2))
        return
    for one in done["released"]:
        typer.echo(f"{one['image']}: released to {one['digest']}")
    if done["order"]:
        typer.echo(f"the new images are being fetched, order {done['order']}")
