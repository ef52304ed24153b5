"""The configuration: its keys and defaults, and where it is read from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from mirror.config.cluster import ClusterConfig
from mirror.config.objects import ObjectsConfig
from mirror.config.problems import describe, misnamed_variables
from mirror.config.sections import (
    Access,
    Admin,
    DownloadsConfig,
    Limits,
    Log,
    RegistryConfig,
    Storage,
    Sync,
    Tags,
    Tls,
    TracingConfig,
)
from mirror.config.sources import read_environment, read_file
from mirror.config.types import Address, Listen
from mirror.core.errors import InvalidInput
from mirror.core.image_selector import ImageSelector
from mirror.core.names import canonical_registry
from mirror.core.units import format_bytes
from mirror.errors import ConfigurationError

SEARCH_PATH = ("./mirror.yaml", "/etc/registry-mirror/mirror.yaml")

DOCKER_HUB = RegistryConfig(upstreams=["https://registry-1.docker.io"], token_hosts=frozenset({"auth.docker.io"}))


class _Environment(PydanticBaseSettingsSource):
    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Unused: the environment is read as a whole, so that unknown keys are found."""
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        """Return the environment's settings in the form of the file."""
        return read_environment(os.environ)


class Config(BaseSettings):
    """Everything that can be configured. The defaults are a mirror of Docker Hub for this host."""

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
    offline: bool = False
    registries: dict[str, RegistryConfig] = {"docker.io": DOCKER_HUB}
    tags: Tags = Tags()
    downloads: DownloadsConfig = DownloadsConfig()
    sync: Sync = Sync()
    access: Access = Access()
    limits: Limits = Limits()
    log: Log = Log()
    tracing: TracingConfig = TracingConfig()
    cluster: ClusterConfig = ClusterConfig()
    objects: ObjectsConfig = ObjectsConfig()

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
        """Make the names canonical, and add Docker Hub's upstream and token host."""
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
        known = f"one of the registries: {', '.join(sorted(self.registries)) or 'none'}"
        if self.default_registry not in self.registries:
            raise ConfigurationError([f"default_registry: {self.default_registry!r} is not {known}"])
        problems = []
        for place, entry in enumerate(self.sync.images):
            try:
                registry = entry.selector(self.default_registry).repository.registry
            except InvalidInput as error:
                problems.append(f"sync.images.{place}: {error}")
            else:
                if registry not in self.registries:
                    problems.append(f"sync.images.{place}: {registry!r} is not {known}")
        if problems:
            raise ConfigurationError(problems)

    def hints(self) -> list[str]:
        """Return what is no mistake, but has no effect."""
        largest = self.storage.max_size
        return [
            f"registries.{name}.max_size: {format_bytes(entry.max_size)} is never reached, because storage.max_size is"
            f" {format_bytes(largest)}"
            for name, entry in self.registries.items()
            if 0 < largest < entry.max_size
        ]

    @property
    def offline_registries(self) -> frozenset[str]:
        """The registries that are never asked."""
        return frozenset(name for name, entry in self.registries.items() if self.offline or entry.offline)

    def selectors(self) -> tuple[ImageSelector, ...]:
        """Return the images that are kept, in the order of `sync.images`."""
        return tuple(entry.selector(self.default_registry) for entry in self.sync.images)


def find(named: Path | None) -> Path | None:
    """Return the file to read: the named one, `$MIRROR_CONFIG`, or the first of `SEARCH_PATH` that exists; None without one."""
    if named is not None:
        return named
    if "MIRROR_CONFIG" in os.environ:
        return Path(os.environ["MIRROR_CONFIG"])
    return next((path for path in map(Path, SEARCH_PATH) if path.exists()), None)


def load(path: Path | None) -> Config:
    """Load a configuration file; None for the defaults and the environment only.

    Raises:
        ConfigurationError: one line for each mistake, with its key.
    """
    misnamed = misnamed_variables(os.environ, Config)
    if misnamed:
        raise ConfigurationError(misnamed)
    try:
        return Config(**read_file(path))
    except ValidationError as error:
        raise ConfigurationError([describe(problem, Config) for problem in error.errors()]) from None
