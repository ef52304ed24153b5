"""The command `client-config`, which prints or writes the configuration of a container client."""

from __future__ import annotations

import errno
import json
import os
import shlex
import shutil
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from mirror.cli.client import configuration
from mirror.cli.options import ConfigOption, JsonOption
from mirror.cli.problems import refuse
from mirror.config.model import Config
from mirror.core.client_files import Merge, Unmergeable, combine
from mirror.core.client_setup import CLIENTS, ClientSetup, Mirror, MirroredRegistry, MirrorUrl, client_setup
from mirror.core.errors import InvalidInput
from mirror.core.names import canonical_registry

_PLACES = {
    Merge.DAEMON_JSON: "merge the key into the file if there is one",
    Merge.OWN_FILE: "a file of its own",
    Merge.CREATE: "merge it into the file if there is one",
}


def client_config(
    client: Annotated[str, typer.Argument(help=f"The client: {', '.join(CLIENTS)}.")],
    url: Annotated[
        str | None,
        typer.Option(
            help="The mirror as clients see it, like http://mirror.example:5000. By default `listen`, if that is one address."
        ),
    ] = None,
    registry: Annotated[
        list[str] | None, typer.Option(help="A registry to mirror; repeat it. By default all that are configured.")
    ] = None,
    ca: Annotated[str | None, typer.Option(help="On the client: file with the authority of the mirror's certificate.")] = None,
    write: Annotated[bool, typer.Option("--write", help="Write the files, with a backup of each that is changed.")] = False,
    root: Annotated[Path, typer.Option(help="Write below this directory, for an image or a mounted disk.")] = Path("/"),
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print how a container client is configured to use this mirror: each file, the reload command, and a check.

    With --write the files are written. A daemon.json keeps its other keys. A file with other content is left alone, and the exit
    status is 1.
    """
    if client not in CLIENTS:
        refuse([f"there is no client {client!r}; there are {', '.join(CLIENTS)}"])
    if ca is not None and (not ca.startswith("/") or shlex.quote(ca) != ca):
        refuse([f"--ca: must be an absolute path without blanks and quotes, not {ca!r}"])
    settings = configuration(config)
    setup = client_setup(client, Mirror(_url(url, settings), _registries(registry, settings), ca))
    if write:
        _write(setup, root)
    elif as_json:
        typer.echo(json.dumps(_described(setup), indent=2))
    else:
        _print(setup)


def _url(text: str | None, config: Config) -> MirrorUrl:
    if text is None:
        if config.listen.host in ("0.0.0.0", "::"):  # noqa: S104 - compared, not listened on
            refuse([f"--url is required: `listen` is {config.listen}, which is no address that a client can use"])
        text = f"{'http' if config.tls.certificate is None else 'https'}://{config.listen}"
    try:
        return MirrorUrl.parse(text)
    except InvalidInput as error:
        refuse([f"--url: {error}"])


def _registries(named: list[str] | None, config: Config) -> tuple[MirroredRegistry, ...]:
    try:
        names = [canonical_registry(name) for name in named or config.registries]
    except InvalidInput as error:
        refuse([f"--registry: {error}"])
    for name in names:
        if name not in config.registries:
            refuse([f"--registry: {name} is not mirrored; there are {', '.join(sorted(config.registries))}"])
    return tuple(
        MirroredRegistry.of(name, config.registries[name].upstreams, is_default=name == config.default_registry)
        for name in dict.fromkeys(names)
    )


def _described(setup: ClientSetup) -> dict[str, Any]:
    return {
        "files": [{"path": file.path, "content": file.text} for file in setup.files],
        "by_hand": [{"path": file.path, "content": file.text} for file in setup.by_hand],
        "commands": list(setup.commands),
        "checks": list(setup.checks),
        "notes": list(setup.notes),
    }


def _print(setup: ClientSetup) -> None:
    for file in setup.files:
        typer.echo(f"{file.path} ({_PLACES[file.merge]}):\n\n{_indented(file.text)}")
    _print_rest(setup)


def _print_rest(setup: ClientSetup) -> None:
    for file in setup.by_hand:
        typer.echo(f"{file.path} (edit it by hand):\n\n{_indented(file.text)}")
    for title, lines in (("Then:", setup.commands), ("Check:", setup.checks)):
        if lines:
            typer.echo(title + "\n\n" + _indented("\n".join(lines)))
    for note in setup.notes:
        typer.echo(f"Note: {note}")


def _indented(text: str) -> str:
    return "".join(f"    {line}\n" if line else "\n" for line in text.splitlines())


def _write(setup: ClientSetup, root: Path) -> None:
    """Write all files, or none if one of them has to stay as it is."""
    problems, plan = [], []
    for file in setup.files:
        path = root / file.path.lstrip("/")
        try:
            path = _target(root, path)
            existing = path.read_text("utf-8") if path.exists() else None
            plan.append((path, existing, combine(file, existing)))
        except Unmergeable as error:
            problems.append(f"{path} {error}. It needs:\n\n{_indented(file.text)}")
        except (OSError, UnicodeDecodeError) as error:
            problems.append(f"{path} cannot be read: {error}")
    if problems:
        refuse([*problems, "nothing was written"], 1)
    for path, existing, text in plan:
        try:
            typer.echo(_replace(path, existing, text))
        except OSError as error:
            refuse([f"{path} cannot be written: {error.strerror}"], 1)
    _print_rest(setup)


def _target(root: Path, path: Path) -> Path:
    """Return the file that a path leads to, which need not exist. Raises Unmergeable if it has to stay as it is."""
    target, top = Path(os.path.realpath(path)), os.path.realpath(root)
    if not target.is_relative_to(top):
        raise Unmergeable(f"is a link that leads out of {root}")
    # A device, for example: Debian's way to mask a file is a link to /dev/null.
    if os.path.lexists(target) and not target.is_file():
        raise Unmergeable(f"is no regular file, but {'a link to ' if target != path else ''}{target}")
    return target


def _replace(path: Path, existing: str | None, text: str) -> str:
    """Write a file at once or not at all; return what was done. Raises OSError."""
    if text == existing:
        return f"unchanged: {path}"
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, new = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        _take_owner_and_mode(path, Path(new))
        if (path.read_text("utf-8") if path.exists() else None) != existing:
            raise OSError(errno.EBUSY, "it was changed meanwhile; try again")
        backup = _back_up(path) if existing is not None else None
        os.replace(new, path)
    except BaseException:
        os.unlink(new)
        raise
    return f"written: {path}" + (f" (before: {backup})" if backup else "")


def _back_up(path: Path) -> Path:
    """Copy a file beside itself, under a name that is free."""
    number = 0
    while (backup := Path(f"{path}.bak{number or ''}")).exists():
        number += 1
    shutil.copy2(path, backup)
    return backup


def _take_owner_and_mode(path: Path, new: Path) -> None:
    if path.exists():
        shutil.copymode(path, new)
        status = path.stat()
        os.chown(new, status.st_uid, status.st_gid)
    else:
        new.chmod(0o644)
