"""The types of values in the configuration, each with its validation."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from mirror.config.tls import check_certificates
from mirror.core.hosts import parse_host
from mirror.core.htpasswd import parse_htpasswd
from mirror.core.names import PathPattern
from mirror.core.networks import parse_network
from mirror.core.platform import Platform
from mirror.core.policy import DigestRule
from mirror.core.units import parse_bytes, parse_duration
from mirror.core.versions import VersionRange


def _of(parse: Callable[[str], float]) -> Callable[[Any], Any]:
    def convert(value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError("must be text like the default's")  # noqa: TRY004 - pydantic requires a ValueError
        return parse(str(value))

    return convert


Duration = Annotated[float, BeforeValidator(_of(parse_duration)), Field(ge=0)]
Size = Annotated[int, BeforeValidator(_of(parse_bytes)), Field(ge=0)]


class Address(BaseModel):
    """A host and a port to listen on."""

    model_config = ConfigDict(frozen=True)

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether only this host can connect to it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _address(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    host, colon, port = value.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
    if not colon or not (port.isascii() and port.isdigit()) or int(port) > 65535 or (":" in host and "[" not in value):
        raise ValueError("must be HOST:PORT, for example 127.0.0.1:5000 or [::1]:5000")
    return {"host": host or "0.0.0.0", "port": int(port)}  # noqa: S104 - ":5000" means every interface


Listen = Annotated[Address, BeforeValidator(_address)]


def _readable(path: Path) -> Path:
    try:
        with path.open("rb"):
            return path
    except OSError as error:
        raise ValueError(f"cannot be read: {path}: {error.strerror}") from error


ReadableFile = Annotated[Path, AfterValidator(_readable)]


def _path_pattern(value: str) -> str:
    PathPattern.parse(value)
    return value


Pattern = Annotated[str, AfterValidator(_path_pattern)]


def _denied(value: str) -> str:
    if "@" in value:
        DigestRule.parse(value)
        return value
    return _path_pattern(value)


DenyPattern = Annotated[str, AfterValidator(_denied)]


def _split(value: str) -> SplitResult:
    """Split a URL. The library's error is replaced: it quotes a part of the URL, which may be half a password."""
    try:
        parts = urlsplit(value)
        _ = parts.port
    except ValueError:
        raise ValueError("is no URL that can be read: look at its host and port") from None
    return parts


def _without_credentials(value: str) -> str:
    """Refuse credentials first: the other errors quote the URL."""
    if "@" in value:
        raise ValueError("must not contain credentials; username and password_file are for those of a registry")
    return value


def _upstream(value: str) -> str:
    parts = _split(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
        raise ValueError(f"must be a URL like https://registry-1.docker.io, not {value[:100]!r}")
    if parts.query or parts.fragment:
        raise ValueError("must not contain a query or a fragment")
    if parts.path.rstrip("/").endswith("/v2"):
        raise ValueError("must not end with /v2: that is where every request's path begins, and is added to it")
    return value.rstrip("/")


UpstreamUrl = Annotated[str, AfterValidator(_without_credentials), AfterValidator(_upstream)]


def _proxy(value: str) -> str:
    parts = _split(value)
    if parts.scheme != "http" or not parts.hostname or parts.port == 0 or parts.path not in ("", "/"):
        raise ValueError("must be a URL like http://proxy.example:3128")
    if parts.query or parts.fragment:
        raise ValueError("must not contain a query or a fragment")
    return value.rstrip("/")


ProxyUrl = Annotated[str, AfterValidator(_without_credentials), AfterValidator(_proxy)]


def with_content(path: Path | None) -> Path | None:
    """Return a path; raise ValueError if its file is empty or not text."""
    if path is not None:
        try:
            empty = not path.read_text().strip()
        except UnicodeDecodeError as error:
            raise ValueError(f"is not text: {path}") from error
        if empty:
            raise ValueError(f"is empty: {path}")
    return path


def _credential(name: Any) -> Any:
    """Return the path of a file; a bare name may be a credential of systemd's (systemd.exec, Credentials)."""
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    if directory is None or not isinstance(name, str) or os.path.basename(name) != name:
        return name
    credential = os.path.join(directory, name)
    return credential if os.path.exists(credential) else name


SecretFile = Annotated[ReadableFile, BeforeValidator(_credential), AfterValidator(with_content)]


def _certificates(path: Path) -> Path:
    check_certificates(path)
    return path


CertificatesFile = Annotated[ReadableFile, AfterValidator(_certificates)]


def _htpasswd(path: Path) -> Path:
    try:
        parse_htpasswd(path.read_text())
    except UnicodeDecodeError as error:
        raise ValueError(f"is not text: {path}") from error
    return path


HtpasswdFile = Annotated[ReadableFile, AfterValidator(_htpasswd)]


def _receiver(value: str) -> str:
    parts = _split(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
        raise ValueError("must be a URL like https://example.com/hook")
    if parts.username or parts.password or parts.fragment:
        raise ValueError("must not contain credentials or a fragment")
    return value


ReceiverUrl = Annotated[str, AfterValidator(_receiver)]


def _platform(value: Any) -> Any:
    if not isinstance(value, str | Platform):
        raise ValueError("must be os/architecture, for example linux/amd64")  # noqa: TRY004 - pydantic requires a ValueError
    return Platform.parse(value) if isinstance(value, str) else value


PlatformText = Annotated[Platform, BeforeValidator(_platform)]


def _versions(value: Any) -> Any:
    if not isinstance(value, str | VersionRange):
        # YAML makes 1.20 the number 1.2.
        raise ValueError('must be text in quotes, for example ">=1.25 <2"')  # noqa: TRY004 - pydantic requires a ValueError
    return VersionRange.parse(value) if isinstance(value, str) else value


VersionsText = Annotated[VersionRange, BeforeValidator(_versions)]


def _network(value: str) -> str:
    return str(parse_network(value))


NetworkText = Annotated[str, AfterValidator(_network)]

HostName = Annotated[str, AfterValidator(parse_host)]


class Section(BaseModel):
    """A section of the configuration. Unknown keys are errors. Messages do not quote values, which may be secrets."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)
