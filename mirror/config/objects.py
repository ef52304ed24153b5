"""The section `objects` of the configuration: the bucket behind the store."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from mirror.config.types import CertificatesFile, Duration, NetworkText, SecretFile, Section, Size

# Slower uploads would not keep up with one client.
MIN_RATE = 1 << 20
# A number without its unit would empty the bucket.
MIN_SIZE = 1 << 30
# As S3 has them: 3 to 63 characters.
_MIN_BUCKET, _MAX_BUCKET = 3, 63
_KEY_LINES = 2
# The characters that need no encoding anywhere (Amazon S3 user guide, "Naming Amazon S3 objects").
_PREFIX_PART = re.compile(r"[A-Za-z0-9._=-]+")
_NO_REGION = "auto"


def _bucket_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme != "s3" or parts.query or parts.fragment or "@" in parts.netloc or ":" in parts.netloc:
        raise ValueError("must be a URL like s3://bucket or s3://bucket/prefix")
    if not _MIN_BUCKET <= len(parts.netloc) <= _MAX_BUCKET:
        raise ValueError(f"the name of a bucket has {_MIN_BUCKET} to {_MAX_BUCKET} characters")
    prefix = parts.path.strip("/")
    if prefix and not all(_PREFIX_PART.fullmatch(part) and part.strip(".") for part in prefix.split("/")):
        raise ValueError("has a prefix that is no path: letters, digits, '.', '_', '=', '-', and single slashes between them")
    return value


def _endpoint(value: str) -> str:
    try:
        parts = urlsplit(value)
        _ = parts.port
    except ValueError:
        raise ValueError("is no URL that can be read: look at its host and port") from None
    if "@" in parts.netloc:
        raise ValueError("must not contain credentials; access_key_file is for those")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError("must be a URL of a host, like https://s3.example:9000")
    return value.rstrip("/")


class Redirect(Section):
    """Clients that fetch large blobs from the bucket themselves. Without `networks` none does."""

    networks: tuple[NetworkText, ...] = ()
    min_size: Size = 64 << 20
    url_ttl: Annotated[Duration, Field(ge=60, le=3600)] = 600.0


class ObjectsConfig(Section):
    """S3 behind the store. Without `url` there is none."""

    url: Annotated[str, AfterValidator(_bucket_url)] | None = None
    endpoint: Annotated[str, AfterValidator(_endpoint)] | None = None
    region: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,40}$")] = _NO_REGION
    access_key_file: SecretFile | None = None
    ca_file: CertificatesFile | None = None
    # In YAML 1.1 an `off` without quotes is false.
    write: Annotated[Literal["owner", "off"], BeforeValidator(lambda value: "off" if value is False else value)] = "owner"
    max_size: Size = 20 << 40
    min_size: Size = 0
    max_rate: Size = 200 << 20
    redirect: Redirect = Redirect()

    @property
    def is_enabled(self) -> bool:
        """Whether there is a bucket."""
        return self.url is not None

    @field_validator("url")
    @classmethod
    def _installed(cls, value: str | None) -> str | None:
        if value is not None and importlib.util.find_spec("obstore") is None:
            raise ValueError("requires the extra cluster: pip install 'registry-mirror[cluster]'")
        return value

    @field_validator("access_key_file")
    @classmethod
    def _two_lines(cls, path: Path | None) -> Path | None:
        if path is not None and len(path.read_text().split()) != _KEY_LINES:
            raise ValueError(f"must have two lines, the id of the key and its secret: {path}")
        return path

    @field_validator("max_size")
    @classmethod
    def _large_enough(cls, size: int) -> int:
        if 0 < size < MIN_SIZE:
            raise ValueError(f"is less than {MIN_SIZE >> 30}GiB, which would empty the bucket; 0 is no limit")
        return size

    @field_validator("max_rate")
    @classmethod
    def _fast_enough(cls, rate: int) -> int:
        if 0 < rate < MIN_RATE:
            raise ValueError(f"is less than {MIN_RATE >> 20}MiB a second, with which uploads would never end; 0 is no limit")
        return rate

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.url is None and (self.endpoint or self.access_key_file or self.ca_file or self.redirect.networks):
            raise ValueError("url is required with endpoint, access_key_file, ca_file or redirect.networks")
        if self.url is not None and self.endpoint is None and self.region == _NO_REGION:
            raise ValueError("region is required without endpoint: the hosts of Amazon are named by it, such as eu-central-1")
        return self
