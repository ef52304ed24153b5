"""The rules of `trust`: who has to have signed what is served."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from mirror.config.types import Pattern, ReadableFile, Section
from mirror.core.names import PathPattern


def _without_tag(value: str) -> str:
    if PathPattern.parse(value).tag is not None:
        raise ValueError("must not name a tag: the manifests and layers of a repository are also pulled by their digests")
    return value


RepositoryPattern = Annotated[Pattern, AfterValidator(_without_tag)]


def _public_key(path: Path) -> Path:
    # Costs a quarter of a second: only for who has a key.
    from mirror.trust.keys import PublicKey  # noqa: PLC0415

    PublicKey.parse(path.read_bytes(), str(path))
    return path


PublicKeyFile = Annotated[ReadableFile, AfterValidator(_public_key)]


def _require_sigstore() -> None:
    if importlib.util.find_spec("sigstore") is None:
        raise ValueError("requires the extra sigstore: pip install 'registry-mirror[sigstore]'")


def _trust_root(path: Path) -> Path:
    _require_sigstore()
    from mirror.trust.keyless import check_trust_root  # noqa: PLC0415 - an extra, and half a second of imports

    try:
        check_trust_root(path)
    except ValueError as error:
        raise ValueError(f"{error}: {path}") from error
    return path


TrustRootFile = Annotated[ReadableFile, AfterValidator(_trust_root)]


def _issuer(value: str) -> str:
    if not value.startswith(("https://", "http://")):
        raise ValueError("must be a URL like https://accounts.google.com")
    return value


class IdentityConfig(Section):
    """Who signs without a key."""

    issuer: Annotated[str, AfterValidator(_issuer)]
    subject: Annotated[str, Field(min_length=1, max_length=512)]


class TrustRuleConfig(Section):
    """Who has to have signed the manifests of the repositories that match; the first rule that matches applies."""

    match: RepositoryPattern
    keys: tuple[PublicKeyFile, ...] = ()
    identities: tuple[IdentityConfig, ...] = ()
    mode: Literal["enforce", "warn"] = "enforce"

    @model_validator(mode="after")
    def _somebody(self) -> Self:
        if not self.keys and not self.identities:
            raise ValueError("keys or identities are required: without them nothing could be trusted")
        if self.identities:
            _require_sigstore()
        return self
