"""The command `import`, which sends bundles to a running mirror."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Final
from urllib.parse import urlencode

import typer

from mirror.cli.byte_progress import Show, byte_progress
from mirror.cli.client import AdminClient, InterruptedAfterUpload, Refused
from mirror.cli.options import ConfigOption, JsonOption, TokenOption, UrlOption
from mirror.core.units import format_bytes
from mirror.transfer.errors import InvalidBundle
from mirror.transfer.layout_folder import LayoutFolder

_TAR: Final = "application/x-tar"
_PIECE_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class _Bundle:
    """Bytes to send.

    Attributes:
        size: None if it is not known.
    """

    name: str
    pieces: Iterator[bytes]
    size: int | None


def import_(
    file: Annotated[
        list[str],
        typer.Argument(
            help="Bundles: tar files of `export`, `docker save`, skopeo, podman or `ctr images export`, plain or in gzip or "
            "zstd; folders with an OCI image layout; `-` for the standard input."
        ),
    ],
    name: Annotated[
        str | None, typer.Option("--as", metavar="NAME", help="The name of an image that has none in its bundle.")
    ] = None,
    config: ConfigOption = None,
    url: UrlOption = None,
    token_file: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bring images into the mirror from files, without any registry.

    Every digest is checked, and a tag appears when its image is whole. The exit status is 1 if an image or a file is refused; the
    others are imported nevertheless.
    """
    admin = AdminClient(config, url, token_file)
    path = "/api/v1/import" + (f"?{urlencode({'as': name})}" if name is not None else "")
    results: list[dict[str, Any]] = []
    for one in file:
        try:
            results.append({"file": one, **_send(admin, path, one, quiet=as_json)})
        except (Refused, InvalidBundle, OSError) as error:
            cause = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            results.append({"file": one, "error": cause})
        except InterruptedAfterUpload:
            typer.echo(f"interrupted: the mirror has all of {one}, and goes on with the import; its log says the end", err=True)
            raise typer.Exit(130) from None
        except KeyboardInterrupt:
            typer.echo("interrupted: what has not been imported whole is removed", err=True)
            raise typer.Exit(130) from None
        if not as_json:
            _report(results[-1])
    if as_json:
        typer.echo(json.dumps(results, indent=2))
    if any("error" in one or any(image["result"] == "refused" for image in one["images"]) for one in results):
        raise typer.Exit(1)


def _send(admin: AdminClient, path: str, file: str, *, quiet: bool) -> Any:
    with _opened(file) as bundle, byte_progress(quiet=quiet) as show:
        return admin.upload(path, _TAR, _shown(bundle, show), bundle.size)


def _shown(bundle: _Bundle, show: Show) -> Iterator[bytes]:
    """Yield the bytes of a bundle, and show how many have been sent."""
    sent = 0
    for piece in bundle.pieces:
        yield piece
        sent += len(piece)
        show(bundle.name, sent, bundle.size)


@contextlib.contextmanager
def _opened(name: str) -> Iterator[_Bundle]:
    if name == "-":
        pieces = _read(sys.stdin.buffer)
        # `docker save` needs a while before its first byte: the mirror is not kept waiting for it.
        first = next(pieces, b"")
        yield _Bundle("standard input", _after(first, pieces), None)
    elif os.path.isdir(name):
        folder = LayoutFolder.open(name)
        yield _Bundle(name, folder.pieces(), folder.size)
    else:
        with open(name, "rb") as file:
            state = os.fstat(file.fileno())
            yield _Bundle(name, _read(file), state.st_size if file.seekable() else None)


def _read(file: Any) -> Iterator[bytes]:
    while piece := file.read1(_PIECE_BYTES):
        yield piece


def _after(first: bytes, pieces: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from pieces


def _report(result: dict[str, Any]) -> None:
    file = result["file"]
    if "error" in result:
        typer.echo(f"registry-mirror: {file}: {result['error']}", err=True)
        return
    for image in result["images"]:
        if image["result"] == "refused":
            typer.echo(f"registry-mirror: {file}: {image['name']}: {image['cause']}", err=True)
        elif image["result"] == "moved" or not image["attached"]:
            typer.echo(_line(image))
    attached = sum(image["attached"] and image["result"] != "refused" for image in result["images"])
    signatures = f"{attached} signatures and other referrers, " if attached else ""
    stored, held = format_bytes(result["bytes"]), format_bytes(result["bytes_held"])
    typer.echo(f"{file}: {signatures}{stored} stored, {held} were already here")


def _line(image: dict[str, Any]) -> str:
    """Return the line of an image that was imported."""
    digest, old = image["digest"], image["old"]
    result = f"moved from {old} to {digest}" if image["result"] == "moved" else f"{image['result']}, {digest}"
    line = f"{image['name']}: {result}"
    if image["platforms"]:
        line += f"; {', '.join(image['platforms'])}"
    if image["left_out"]:
        line += f"; not in the bundle: {', '.join(image['left_out'])}"
    return line + (f"; {image['note']}" if image["note"] else "")
