"""The sections of the configuration, with their keys and defaults."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from mirror.config.tls import server_context
from mirror.config.trust import TrustRootFile, TrustRuleConfig
from mirror.config.types import (
    Address,
    CertificatesFile,
    DenyPattern,
    Duration,
    HostName,
    HtpasswdFile,
    Listen,
    NetworkText,
    Pattern,
    PlatformText,
    ProxyUrl,
    ReadableFile,
    ReceiverUrl,
    SecretFile,
    Section,
    Size,
    UpstreamUrl,
    VersionsText,
    with_content,
)
from mirror.core.image_selector import ImageSelector
from mirror.core.names import DOCKER_HUB
from mirror.core.platform import Platform
from mirror.core.tag_moves import MAX_COOLDOWN_S
from mirror.core.units import format_duration

# Characters: the secret alone authenticates a webhook.
MIN_WEBHOOK_SECRET = 16
# So that each of the usual number of connections gets a turn within a few seconds.
MIN_RATE = 256 << 10


class Tls(Section):
    """TLS at the registry address."""

    certificate: CertificatesFile | None = None
    key: ReadableFile | None = None
    client_ca: CertificatesFile | None = None

    @field_validator("key")
    @classmethod
    def _belongs(cls, key: Path | None, info: ValidationInfo) -> Path | None:
        certificate = info.data.get("certificate")
        if certificate is not None:
            server_context(certificate, key)
        return key

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.certificate is None and (self.key is not None or self.client_ca is not None):
            raise ValueError("certificate is required with key or client_ca")
        if self.certificate is not None and self.key is None:
            server_context(self.certificate)
        return self


class Access(Section):
    """The clients that may use the registry address."""

    htpasswd_file: HtpasswdFile | None = None
    anonymous: bool = True
    networks: tuple[NetworkText, ...] = ()
    hosts: tuple[HostName, ...] = ()

    @model_validator(mode="after")
    def _somebody(self) -> Self:
        if not self.anonymous and self.htpasswd_file is None:
            raise ValueError("no client could pass: anonymous is false and htpasswd_file is missing")
        return self


class Limits(Section):
    """Maximum of connections, requests and downloads of clients; 0 is no limit, but for the last one (see mirror.yaml)."""

    connections: Annotated[int, Field(ge=0)] = 10_000
    connections_per_address: Annotated[int, Field(ge=0)] = 2000
    requests_per_address: Annotated[int, Field(ge=0)] = 1000
    downloads_per_address: Annotated[int, Field(ge=0)] = 0


class Admin(Section):
    """The admin address: metrics, health, administration."""

    listen: Listen = Address(host="127.0.0.1", port=5001)
    token_file: ReadableFile | None = None
    hosts: tuple[HostName, ...] = ()

    @field_validator("token_file")
    @classmethod
    def _not_empty(cls, path: Path | None) -> Path | None:
        return with_content(path)

    @model_validator(mode="after")
    def _token_where_others_reach_it(self) -> Self:
        if self.token_file is None and not self.listen.is_loopback:
            raise ValueError(f"{self.listen} can be reached from other hosts: token_file is required")
        return self


class TracingConfig(Section):
    """Where spans of requests are sent."""

    otlp_endpoint: ReceiverUrl | None = None

    @field_validator("otlp_endpoint")
    @classmethod
    def _installed(cls, value: str | None) -> str | None:
        if value is not None and "?" in value:
            raise ValueError("must not contain a query")
        if value is not None and importlib.util.find_spec("opentelemetry") is None:
            raise ValueError("requires the extra otel: pip install 'registry-mirror[otel]'")
        return value


class Storage(Section):
    """The store."""

    path: Path = Path("./cache")
    max_size: Size = 50 << 30
    min_free: Size = 2 << 30
    scrub_interval: Duration = 30 * 86400.0


class TagRuleConfig(Section):
    """An exception for tags that match; the first rule that matches applies."""

    match: Pattern
    ttl: Duration | None = None
    pin: bool = False
    cooldown: Duration = 0.0
    cooldown_new: Literal["serve", "refuse"] = "serve"
    freeze: bool = False

    @field_validator("cooldown")
    @classmethod
    def _not_too_long(cls, cooldown: float) -> float:
        if cooldown > MAX_COOLDOWN_S:
            raise ValueError(f"must be at most {format_duration(MAX_COOLDOWN_S)}")
        return cooldown

    @model_validator(mode="after")
    def _refuses_for_a_time(self) -> Self:
        if self.cooldown_new == "refuse" and not self.cooldown:
            raise ValueError("cooldown is required with cooldown_new: refuse: it says for how long")
        return self


class RegistryConfig(Section):
    """One registry that is mirrored."""

    upstreams: Annotated[list[UpstreamUrl], Field(min_length=1)]
    username: str | None = None
    password_file: SecretFile | None = None
    token_hosts: frozenset[str] = frozenset()
    anonymous_fallback: bool = False
    ca_file: CertificatesFile | None = None
    proxy: ProxyUrl | None = None
    keep_deleted: bool = False
    offline: bool = False
    fill: Literal["whole", "ranges"] = "whole"
    max_size: Size = 0
    allow: tuple[Pattern, ...] = ()
    deny: tuple[DenyPattern, ...] = ()
    tags: tuple[TagRuleConfig, ...] = ()
    trust: tuple[TrustRuleConfig, ...] = ()
    trust_root: TrustRootFile | None = None

    @model_validator(mode="after")
    def _whole_credentials(self) -> Self:
        if (self.username is None) != (self.password_file is None):
            raise ValueError("username and password_file only make sense together")
        return self


class Tags(Section):
    """How long answers about tags are served without or despite upstream."""

    ttl: Duration = 60.0
    stale_if_error: Duration = 30 * 86400.0
    not_found_ttl: Duration = 30.0
    revalidate_timeout: Duration = 3.0


class DownloadsConfig(Section):
    """How blobs are fetched."""

    connections_per_blob: Annotated[int, Field(ge=1, le=16)] = 4
    parallel_from: Size = 32 << 20
    max_upstream_connections: Annotated[int, Field(ge=1, le=10_000)] = 64
    connect_timeout: Annotated[Duration, Field(gt=0, le=10)] = 5.0
    stall_timeout: Annotated[Duration, Field(gt=0, le=600)] = 15.0
    prefetch: bool = True
    max_rate: Size = 0

    @field_validator("max_rate")
    @classmethod
    def _fast_enough(cls, rate: int) -> int:
        if 0 < rate < MIN_RATE:
            raise ValueError(f"is less than {MIN_RATE >> 10}KiB a second, with which downloads would seem to hang; 0 is no limit")
        return rate


class Log(Section):
    """The log on standard error."""

    format: Literal["console", "json"] = "console"
    level: Literal["debug", "info", "warning", "error"] = "info"
    # In YAML 1.1 an `off` without quotes is false.
    access: Annotated[Literal["off", "errors", "all"], BeforeValidator(lambda value: "off" if value is False else value)] = "off"


class ImageConfig(Section):
    """An image that is kept, or the tags of a repository that match."""

    image: str
    versions: VersionsText | None = None
    newest: Annotated[int | None, Field(ge=1, le=ImageSelector.MAX_TAGS)] = None
    platforms: tuple[PlatformText, ...] = ()

    @model_validator(mode="after")
    def _readable(self) -> Self:
        self.selector(DOCKER_HUB)
        return self

    def selector(self, default_registry: str) -> ImageSelector:
        """Return the selector; a name without a registry belongs to the default one. Raises InvalidInput."""
        return ImageSelector.parse(self.image, default_registry, self.versions, self.newest, self.platforms)


def _image(value: Any) -> Any:
    if isinstance(value, str):
        # Parsed here for an error of the entry, not of the key `image`, which the file does not have.
        ImageSelector.parse(value)
        return {"image": value}
    if not isinstance(value, dict | ImageConfig):
        raise ValueError("must be an image, or a mapping with the key image")  # noqa: TRY004 - pydantic requires a ValueError
    return value


class Notify(Section):
    """The webhook that is notified of tags that have moved."""

    url: ReceiverUrl | None = None
    secret_file: SecretFile | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.url is None and self.secret_file is not None:
            raise ValueError("url is required with secret_file")
        return self


class Sync(Section):
    """How the store keeps in sync with upstream."""

    interval: Duration = 3600.0
    active_within: Duration = 7 * 86400.0
    images: tuple[Annotated[ImageConfig, BeforeValidator(_image)], ...] = ()
    platforms: tuple[PlatformText, ...] = (Platform("linux", "amd64"),)
    reserve: Annotated[int, Field(ge=0)] = 20
    webhook_secret_file: SecretFile | None = None
    notify: Notify = Notify()

    @field_validator("platforms")
    @classmethod
    def _at_least_one(cls, platforms: tuple[Platform, ...]) -> tuple[Platform, ...]:
        if not platforms:
            raise ValueError("at least one platform is required")
        return platforms

    @field_validator("webhook_secret_file")
    @classmethod
    def _long_enough(cls, path: Path | None) -> Path | None:
        if path is not None and len(path.read_text().strip()) < MIN_WEBHOOK_SECRET:
            raise ValueError(f"holds fewer than {MIN_WEBHOOK_SECRET} characters, which could be guessed: {path}")
        return path
