"""The section `cluster` of the configuration: the other nodes, and Redis."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, field_validator, model_validator

from mirror.config.tls import client_context, server_context
from mirror.config.types import Address, CertificatesFile, Duration, Listen, ReadableFile, SecretFile, Section

_MIN_SECRET = 32
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"


def secrets_in(text: str) -> tuple[bytes, ...]:
    """Return the secrets of a file, one a line: the first one signs, all of them are accepted, so that they can be rotated.

    Raises:
        ValueError: there is none, or one is so short that it could be guessed; it may be half written.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise ValueError("is empty")
    if any(len(line) < _MIN_SECRET for line in lines):
        raise ValueError(f"has a line of fewer than {_MIN_SECRET} characters, which could be guessed")
    return tuple(line.encode() for line in lines)


def _redis_url(value: str) -> str:
    try:
        parts = urlsplit(value)
        _ = parts.port
    except ValueError:
        raise ValueError("is no URL that can be read: look at its host and port") from None
    if parts.password is not None:
        raise ValueError("must not contain a password; password_file is for that")
    if parts.query and not (parts.scheme == "unix" and re.fullmatch("db=[0-9]{1,4}", parts.query)):
        raise ValueError("must not have a query, but for the database of a socket: unix:///run/redis.sock?db=1")
    is_host = parts.scheme in ("redis", "rediss") and parts.hostname and (parts.path.strip("/") or "0").isdigit()
    if not (is_host or (parts.scheme == "unix" and parts.path)) or parts.fragment:
        raise ValueError("must be a URL like redis://host:6379/0, rediss://host:6379/0 or unix:///run/redis.sock")
    return value


def _node_url(value: str) -> str:
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        raise ValueError("is no URL that can be read: look at its host and port") from None
    is_address = parts.scheme in ("http", "https") and parts.hostname and port and "@" not in value
    if not is_address or parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError("must be a URL with a port, like http://10.0.3.7:5002")
    return f"{parts.scheme}://{parts.netloc}"


class Redis(Section):
    """The Redis or Valkey through which the nodes coordinate."""

    url: Annotated[str, AfterValidator(_redis_url)] | None = None
    password_file: SecretFile | None = None
    ca_file: CertificatesFile | None = None
    timeout: Annotated[Duration, Field(ge=0.05, le=5)] = 0.25


class ClusterTls(Section):
    """TLS between nodes. Each one shows a certificate of the authority, as a server and as a client."""

    certificate: CertificatesFile | None = None
    key: ReadableFile | None = None
    ca: CertificatesFile | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        given = [value is not None for value in (self.certificate, self.key, self.ca)]
        if any(given) and not all(given):
            raise ValueError("certificate, key and ca are required together")
        if self.certificate is not None and self.key is not None and self.ca is not None:
            server_context(self.certificate, self.key, self.ca)
            client_context(self.certificate, self.key, self.ca)
        return self


class ClusterConfig(Section):
    """Several mirrors that fetch as one. Without `redis.url` this mirror is by itself."""

    name: Annotated[str, Field(pattern=f"^{_NAME}$")] = "default"
    redis: Redis = Redis()
    listen: Listen = Address(host="0.0.0.0", port=5002)  # noqa: S104 - other nodes have to reach it
    advertise: Annotated[str, AfterValidator(_node_url)] | None = None
    secret_file: SecretFile | None = None
    tls: ClusterTls = ClusterTls()
    zone: Annotated[str, Field(pattern=f"^({_NAME})?$")] = ""
    fan_out: Annotated[int, Field(ge=1, le=64)] = 8
    stall_timeout: Annotated[Duration, Field(ge=0.5, le=15)] = 3.0

    @property
    def is_enabled(self) -> bool:
        """Whether this mirror is a node of a cluster."""
        return self.redis.url is not None

    @field_validator("secret_file")
    @classmethod
    def _long_enough(cls, path: Path | None) -> Path | None:
        if path is not None:
            try:
                secrets_in(path.read_text())
            except ValueError as error:
                raise ValueError(f"{error}: {path}") from None
        return path

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.is_enabled and self.secret_file is None:
            raise ValueError("secret_file is required with redis.url: the nodes recognize each other by it")
        if self.tls.certificate is not None and self.advertise is not None and not self.advertise.startswith("https:"):
            raise ValueError("advertise must begin with https:// if tls is set: other nodes would speak plain HTTP")
        return self
