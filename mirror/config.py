"""The configuration: what can be said, what is said when nothing is, and a clear word about every mistake."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from mirror.core.names import canonical_registry
from mirror.errors import ConfigurationError
from mirror.fields import (
    Address,
    CertificatesFile,
    Duration,
    HtpasswdFile,
    Listen,
    NetworkText,
    Pattern,
    ProxyUrl,
    ReadableFile,
    Section,
    Size,
    UpstreamUrl,
    credential,
    with_content,
)
from mirror.sources import read_environment, read_file
from mirror.tls import server_context

SEARCH_PATH = ("./mirror.yaml", "/etc/registry-mirror/mirror.yaml")


class Tls(Section):
    """How the registry address is encrypted."""

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
            raise ValueError("certificate has to name a file, too")
        if self.certificate is not None and self.key is None:
            server_context(self.certificate)
        return self


class Access(Section):
    """Who may use the registry address."""

    htpasswd_file: HtpasswdFile | None = None
    anonymous: bool = True
    networks: tuple[NetworkText, ...] = ()

    @model_validator(mode="after")
    def _somebody(self) -> Self:
        if not self.anonymous and self.htpasswd_file is None:
            raise ValueError("nobody could pass: anonymous is false, and there is no htpasswd_file")
        return self


class Limits(Section):
    """How much clients may have under way at the registry address; 0 is no limit."""

    connections: Annotated[int, Field(ge=0)] = 10_000
    connections_per_address: Annotated[int, Field(ge=0)] = 2000
    requests_per_address: Annotated[int, Field(ge=0)] = 1000


class Admin(Section):
    """Where operators ask: metrics, health, administration."""

    listen: Listen = Address(host="127.0.0.1", port=5001)
    token_file: ReadableFile | None = None

    @field_validator("token_file")
    @classmethod
    def _not_empty(cls, path: Path | None) -> Path | None:
        return with_content(path)

    @model_validator(mode="after")
    def _token_where_others_reach_it(self) -> Self:
        if self.token_file is None and not self.listen.is_loopback:
            raise ValueError(f"{self.listen} can be reached from elsewhere: token_file has to name a file with a token")
        return self


class Storage(Section):
    """Where content is kept."""

    path: Path = Path("./cache")
    max_size: Size = 50 << 30
    min_free: Size = 2 << 30
    scrub_interval: Duration = 30 * 86400.0


class TagRuleConfig(Section):
    """What is different for the tags that match; the first rule that matches counts."""

    match: Pattern
    ttl: Duration | None = None
    pin: bool = False


class RegistryConfig(Section):
    """One registry that is mirrored."""

    upstreams: Annotated[list[UpstreamUrl], Field(min_length=1)]
    username: str | None = None
    password_file: ReadableFile | None = None
    token_hosts: frozenset[str] = frozenset()
    anonymous_fallback: bool = False
    ca_file: CertificatesFile | None = None
    proxy: ProxyUrl | None = None
    keep_deleted: bool = False
    allow: tuple[Pattern, ...] = ()
    deny: tuple[Pattern, ...] = ()
    tags: tuple[TagRuleConfig, ...] = ()

    @field_validator("password_file", mode="before")
    @classmethod
    def _found(cls, value: Any) -> Any:
        return credential(value) if isinstance(value, str) else value

    @field_validator("password_file")
    @classmethod
    def _not_empty(cls, path: Path | None) -> Path | None:
        return with_content(path)

    @model_validator(mode="after")
    def _whole_credentials(self) -> Self:
        if (self.username is None) != (self.password_file is None):
            raise ValueError("username and password_file only make sense together")
        return self


class Tags(Section):
    """How long answers about tags are good."""

    ttl: Duration = 60.0
    stale_if_error: Duration = 30 * 86400.0
    not_found_ttl: Duration = 30.0


class DownloadsConfig(Section):
    """How blobs are fetched."""

    connections_per_blob: Annotated[int, Field(ge=1, le=16)] = 4
    max_upstream_connections: Annotated[int, Field(ge=1, le=10_000)] = 64
    connect_timeout: Annotated[Duration, Field(gt=0, le=10)] = 5.0
    stall_timeout: Annotated[Duration, Field(gt=0, le=600)] = 15.0
    prefetch: bool = True


class Log(Section):
    """What is written to standard error."""

    format: Literal["console", "json"] = "console"
    level: Literal["debug", "info", "warning", "error"] = "info"


DOCKER_HUB = RegistryConfig(upstreams=["https://registry-1.docker.io"], token_hosts=frozenset({"auth.docker.io"}))


class _Environment(PydanticBaseSettingsSource):
    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Unused: the environment is read as a whole, so that unknown keys are found."""
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        """What the environment says, in the form of the file."""
        return read_environment(os.environ)


class Config(BaseSettings):
    """Everything that can be configured. With nothing said, a mirror of Docker Hub for this host."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
    )

    listen: Listen = Address(host="127.0.0.1", port=5000)
    workers: Annotated[int, Field(ge=0, le=256)] = 1
    tls: Tls = Tls()
    admin: Admin = Admin()
    storage: Storage = Storage()
    default_registry: str = "docker.io"
    registries: dict[str, RegistryConfig] = {"docker.io": DOCKER_HUB}
    tags: Tags = Tags()
    downloads: DownloadsConfig = DownloadsConfig()
    access: Access = Access()
    limits: Limits = Limits()
    log: Log = Log()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return _Environment(settings_cls), init_settings

    @field_validator("registries", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        """Names become canonical; Docker Hub's upstream and token host need not be spelled out."""
        if not isinstance(value, dict):
            return value
        named = {canonical_registry(str(name)): body or {} for name, body in value.items()}
        if len(named) < len(value):
            raise ValueError("two of the names mean the same registry")
        hub = named.get("docker.io")
        if isinstance(hub, dict):
            named["docker.io"] = {
                **({"token_hosts": DOCKER_HUB.token_hosts} if "upstreams" not in hub else {}),
                "upstreams": DOCKER_HUB.upstreams,
                **hub,
            }
        return named

    @field_validator("default_registry")
    @classmethod
    def _canonical(cls, value: str) -> str:
        return canonical_registry(value)

    def model_post_init(self, _: Any) -> None:
        if self.default_registry not in self.registries:
            known = ", ".join(sorted(self.registries)) or "none"
            raise ConfigurationError([f"default_registry: {self.default_registry!r} is not one of the registries: {known}"])


def find(named: Path | None) -> Path | None:
    """The configuration file to use: the named one, `$MIRROR_CONFIG`, or the first that exists; None for the defaults."""
    if named is not None:
        return named
    if "MIRROR_CONFIG" in os.environ:
        return Path(os.environ["MIRROR_CONFIG"])
    return next((path for path in map(Path, SEARCH_PATH) if path.exists()), None)


def load(path: Path | None) -> Config:
    """Read a configuration file (None: only defaults and environment).

    Raises:
        ConfigurationError: with one line for each mistake, naming its key.
    """
    try:
        return Config(**read_file(path))
    except ValidationError as error:
        raise ConfigurationError([_line(problem) for problem in error.errors()]) from None


def _line(problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"]) or "configuration"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        message = "there is no such key"
    return f"{key}: {message}"
