"""The rules of `trust`: who has to have signed the manifests of which repositories."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

from mirror.core.names import PathPattern, Repository

if TYPE_CHECKING:
    from mirror.trust.keys import PublicKey

# Part of each fingerprint: a verdict that was reached in another way is reached anew.
_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Identity:
    """Who signs without a key: a certificate of Fulcio names them.

    Attributes:
        issuer: the URL of the OpenID Connect provider that vouched for the subject.
        subject: a glob over an e-mail address or a URI, in which `*` also matches `/`.
    """

    issuer: str
    subject: str

    def matches(self, issuer: str, subject: str) -> bool:
        """Whether this is the identity of a certificate."""
        return issuer == self.issuer and fnmatchcase(subject, self.subject)

    def __str__(self) -> str:
        return f"{self.subject} ({self.issuer})"


@dataclass(frozen=True, slots=True)
class TrustRule:
    """Who has to have signed the manifests of the repositories that match: one of the keys or identities is enough.

    Attributes:
        enforced: False if what is not signed is served, logged and counted.
        root: identifies sigstore's trust root, by which identities are judged; empty for the library's own.
    """

    pattern: PathPattern
    keys: tuple[PublicKey, ...] = ()
    identities: tuple[Identity, ...] = ()
    enforced: bool = True
    root: str = ""

    @property
    def fingerprint(self) -> str:
        """The same as long as the rule judges in the same way; the order of keys and the pattern do not matter."""
        keys = sorted(key.fingerprint for key in self.keys)
        identities = sorted([identity.issuer, identity.subject] for identity in self.identities)
        text = json.dumps([_VERSION, keys, identities, self.root if identities else ""])
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def __str__(self) -> str:
        return f"trust: {self.pattern}"


@dataclass(frozen=True, slots=True)
class TrustRules:
    """The rules of all registries, by registry; the first one that matches a repository applies."""

    rules: Mapping[str, tuple[TrustRule, ...]] = field(default_factory=dict)

    def find(self, repository: Repository) -> TrustRule | None:
        """The rule that applies to a repository, or None."""
        rules = self.rules.get(repository.registry, ())
        return next((rule for rule in rules if rule.pattern.matches_path(repository.path)), None)
