"""The command `export`, which writes images of a running mirror into a bundle."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from typing import Annotated, Any, BinaryIO, Final

import typer

from mirror.cli.byte_progress import Show, byte_progress
from mirror.cli.client import AdminClient, Refused
from mirror.cli.from_files import FromOption, images_from
from mirror.cli.options import ConfigOption, JsonOption, TokenOption, UrlOption
from mirror.cli.problems import refuse
from mirror.cli.whole_file import STDOUT, whole_file
from mirror.core.units import format_bytes, format_duration
from mirror.image_lists.findings import ListedImage
from mirror.transfer.earlier import earlier_blobs

_PATH: Final = "/api/v1/export"
_PIECE_BYTES: Final = 1 << 20
_POLL_INTERVAL_S: Final = 0.5
# The state of an export says how it has ended a moment after its last byte.
_END_TIMEOUT_S: Final = 10.0


def export(
    image: Annotated[
        list[str] | None,
        typer.Argument(help="Images: `nginx:1.27`, `ghcr.io/owner/app@sha256:…`; `library/*:1.*` means those held complete."),
    ] = None,
    files: FromOption = None,
    output: Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="The bundle; `-` is standard output.")] = "",
    platform: Annotated[
        list[str] | None,
        typer.Option(
            help="A platform such as linux/arm64; repeat it for several. By default what the file names, else what is held. "
            "`docker load` gets the first one."
        ),
    ] = None,
    since: Annotated[
        list[str] | None, typer.Option(metavar="OLD", help="Leave out the layers of an earlier bundle; repeat it for several.")
    ] = None,
    exclude: Annotated[list[str] | None, typer.Option(metavar="DIGEST", help="Leave out a layer; repeat it for several.")] = None,
    config: ConfigOption = None,
    url: UrlOption = None,
    token_file: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write images into one tar, for `registry-mirror import`, `docker load`, `ctr images import`, skopeo and podman.

    What is not held is fetched first. Signatures and other referrers travel with their images. The file appears when it is whole.
    """
    admin = AdminClient(config, url, token_file)
    images = _images(image or [], images_from(files or []), platform or [])
    _check(images, output, as_json=as_json)
    body = {"images": images, "platforms": platform or [], "exclude": [*(exclude or []), *_earlier(since or [])]}
    # So that the temporary file goes.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    name, began = f"export-{uuid.uuid4().hex}", time.monotonic()
    try:
        with byte_progress(quiet=as_json) as show, whole_file(output) as file:
            _write(_Request(admin, name, body), file, output, show)
    except Refused as error:
        refuse(str(error).splitlines(), 1)
    except OSError as error:
        refuse([f"{_in_words(output)}: {error.strerror or error}"], 1)
    except KeyboardInterrupt:
        typer.echo("interrupted: nothing was written" if output != STDOUT else "interrupted", err=True)
        raise typer.Exit(130) from None
    _report(_end(admin, name), output, time.monotonic() - began, as_json=as_json)


def _images(named: Sequence[str], listed: Sequence[ListedImage], platforms: Sequence[str]) -> list[str | dict[str, Any]]:
    """Return the images as the API takes them; a platform that a file names counts unless others are asked for."""
    found: dict[str, str | dict[str, Any]] = {name: name for name in named}
    for one in listed:
        own = one.platform is not None and not platforms
        text = f"{one.image} {one.platform if own else ''}"
        found[text if own else one.image] = {"image": one.image, "platforms": [str(one.platform)]} if own else one.image
    return list(found.values())


def _check(images: list[str | dict[str, Any]], output: str, *, as_json: bool) -> None:
    if not images:
        refuse(["name an image, or a file with --from"])
    if not output:
        refuse(["name the bundle: -o FILE, or -o - for standard output"])
    if output == STDOUT and as_json:
        refuse(["--json and the bundle would both go to standard output: name a file with -o"])
    if output == STDOUT and sys.stdout.isatty():
        refuse(["a bundle is no text for a terminal: name a file with -o, or send it into a pipe"])


def _earlier(files: Sequence[str]) -> list[str]:
    found: set[str] = set()
    for file in files:
        try:
            found.update(map(str, earlier_blobs(file)))
        except (OSError, ValueError) as error:
            refuse([f"--since {file}: {getattr(error, 'strerror', None) or error}"])
    return sorted(found)


class _Request(threading.Thread):
    """Sends the request for a bundle, and waits for the head of the response, which comes when everything is collected."""

    def __init__(self, admin: AdminClient, name: str, body: dict[str, Any]) -> None:
        super().__init__(daemon=True)
        self.admin = admin
        self.state_path = f"{_PATH}/{name}"
        self._name = name
        self._body = body
        self._response: http.client.HTTPResponse | None = None
        self._error: Exception | None = None

    def run(self) -> None:
        try:
            self._response = self.admin.stream(_PATH, self._body, self._name)
        except Exception as error:  # noqa: BLE001 - raised again by `response`
            self._error = error

    def response(self, show: Show) -> http.client.HTTPResponse:
        """Wait for the response, and show meanwhile what is fetched."""
        self.start()
        while self.is_alive():
            self.join(_POLL_INTERVAL_S)
            state = self.admin.find(self.state_path)
            if state is not None and state["phase"] in ("finding", "fetching"):
                text = f"{state['phase']} {state['image'] or ''} ({state['done'] + 1} of {state['total']})"
                show(text, state["bytes"], state["size"])
        if self._error is not None:
            raise self._error
        assert self._response is not None
        return self._response


def _write(request: _Request, file: BinaryIO, output: str, show: Show) -> None:
    """Write the response into a file; exit if it ends short."""
    response = request.response(show)
    size = int(response.headers["Content-Length"])
    _require_space(output, size)
    done = 0
    while piece := _read(response, size - done):
        file.write(piece)
        done += len(piece)
        show(f"writing {_in_words(output)}", done, size)
    if done < size:
        state = _end(request.admin, request.state_path.removeprefix(f"{_PATH}/"))
        cause = state["cause"] or "the mirror has ended the connection"
        refuse([f"the bundle was cut after {done} of {size} bytes, and is of no use: {cause}"], 1)


def _read(response: http.client.HTTPResponse, left: int) -> bytes:
    """Return the next bytes of a bundle; none after its end, and where it is cut."""
    try:
        return response.read(min(_PIECE_BYTES, left))
    except (OSError, http.client.HTTPException):
        return b""


def _in_words(output: str) -> str:
    return "standard output" if output == STDOUT else output


def _require_space(output: str, size: int) -> None:
    directory = os.path.dirname(os.path.realpath(output))
    if output != STDOUT and not os.path.exists(output) and shutil.disk_usage(directory).free < size:
        free = format_bytes(shutil.disk_usage(directory).free)
        refuse([f"{output}: the bundle takes {format_bytes(size)}, but {directory} has {free} free"], 1)


def _end(admin: AdminClient, name: str) -> dict[str, Any]:
    """Return the state of an export when it has ended; after some seconds as it is."""
    deadline = time.monotonic() + _END_TIMEOUT_S
    while True:
        state: dict[str, Any] | None = None
        with contextlib.suppress(Refused):
            state = admin.find(f"{_PATH}/{name}")
        if state is not None and (state["phase"] == "ended" or time.monotonic() >= deadline):
            return state
        if time.monotonic() >= deadline:
            return {"cause": None, "contents": [], "total": 0, "size": 0}
        time.sleep(_POLL_INTERVAL_S)


def _report(state: dict[str, Any], output: str, seconds: float, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"file": output, **state}, indent=2))
        return
    for one in state["contents"]:
        typer.echo(_line(one), err=output == STDOUT)
    more = state["total"] - len(state["contents"])
    if more > 0:
        typer.echo(f"and {more} more", err=output == STDOUT)
    images = "1 image" if state["total"] == 1 else f"{state['total']} images"
    typer.echo(
        f"{_in_words(output)}: {images}, {format_bytes(state['size'])} in {format_duration(max(0, round(seconds)))}",
        err=output == STDOUT,
    )


def _line(one: dict[str, Any]) -> str:
    """Return what a bundle has of an image."""
    said = [", ".join(one["platforms"]) or "no platform"]
    if one["left_out"]:
        said.append(f"without {', '.join(dict.fromkeys(one['left_out']))}")
    if one["attached"]:
        said.append(f"{one['attached']} attached")
    if one["docker_obstacle"] is not None:
        said.append(f"not for `docker load`: {one['docker_obstacle']}")
    return f"{one['image']}: {'; '.join(said)}"
