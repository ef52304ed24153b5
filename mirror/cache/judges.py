"""Builds the judges of the configured rules of `trust`. Imported only where there is one."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from mirror.config.model import Config
from mirror.config.sections import RegistryConfig
from mirror.config.trust import TrustRuleConfig
from mirror.core.errors import InvalidInput
from mirror.core.names import PathPattern
from mirror.errors import ConfigurationError
from mirror.trust.judge import Judge, Judges
from mirror.trust.rules import Identity, TrustRule

if TYPE_CHECKING:
    from mirror.trust.keyless import Keyless
    from mirror.trust.keys import PublicKey


def build_judges(config: Config) -> Judges:
    """Build the judges of all registries.

    Raises:
        ConfigurationError: a file has become unusable since the configuration was read.
    """
    judges = {}
    for name, entry in config.registries.items():
        try:
            judges[name] = _judges(name, entry, is_offline=name in config.offline_registries)
        except (OSError, ValueError, InvalidInput) as error:
            raise ConfigurationError([f"registries.{name}.trust: {error}"]) from error
    return Judges(judges)


def _judges(name: str, entry: RegistryConfig, *, is_offline: bool) -> list[Judge]:
    needs_root = any(rule.identities for rule in entry.trust)
    keyless = _keyless(entry.trust_root, refresh=not is_offline) if needs_root else None
    root = "" if entry.trust_root is None else hashlib.sha256(entry.trust_root.read_bytes()).hexdigest()
    return [Judge(_rule(name, rule, root), keyless if rule.identities else None) for rule in entry.trust]


def _rule(name: str, rule: TrustRuleConfig, root: str) -> TrustRule:
    return TrustRule(
        PathPattern.parse(rule.match, name),
        tuple(_key(path) for path in rule.keys),
        tuple(Identity(identity.issuer, identity.subject) for identity in rule.identities),
        rule.mode == "enforce",
        root,
    )


def _key(path: Path) -> PublicKey:
    from mirror.trust.keys import PublicKey  # noqa: PLC0415 - only a rule with a key needs it

    return PublicKey.parse(path.read_bytes(), path.name)


def _keyless(root: Path | None, *, refresh: bool) -> Keyless:
    from mirror.trust.keyless import Keyless  # noqa: PLC0415 - an extra, and half a second of imports

    return Keyless(root, refresh=refresh)
