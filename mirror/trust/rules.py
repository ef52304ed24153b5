"""The rules of `trust`: who has to have signed the manifests of which repositories."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import TYPE_CHECKING, Final

from mirror.core.names import PathPattern

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


@dataclass(frozen=True)
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

    @cached_property
    def fingerprint(self) -> str:
        """The same as long as the rule judges in the same way; the order of keys and the pattern do not matter."""
        keys = sorted(key.fingerprint for key in self.keys)
        identities = sorted([identity.issuer, identity.subject] for identity in self.identities)
        text = json.dumps([_VERSION, keys, identities, self.root if identities else ""])
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def __str__(self) -> str:
        return f"trust: {self.pattern}"
