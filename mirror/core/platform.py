"""Platforms of the images behind an index (OCI image-spec, image-index.md)."""

import re
from dataclasses import dataclass
from typing import Final

from mirror.core.errors import InvalidPlatform

_PART: Final = re.compile(r"[a-z0-9._-]+", re.ASCII)
_ARCHITECTURES: Final = {"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64", "i386": "386"}
_DEFAULT_VARIANTS: Final = {"arm64": "v8", "arm": "v7"}


@dataclass(frozen=True, slots=True)
class Platform:
    """Operating system, architecture, and its variant, "" where there is none. Names are those of Go."""

    os: str
    architecture: str
    variant: str = ""

    @classmethod
    def parse(cls, text: str) -> "Platform":
        """Read `os/architecture[/variant]`, as in `linux/arm64/v8`. Raises InvalidPlatform."""
        parts = text.strip().lower().split("/")
        if len(parts) not in (2, 3) or not all(_PART.fullmatch(part) for part in parts):
            raise InvalidPlatform(text, "expected os/architecture or os/architecture/variant")
        os, architecture, *variant = parts
        return cls(os, _ARCHITECTURES.get(architecture, architecture), *variant)

    def matches(self, offered: "Platform | None") -> bool:
        """Whether an index entry for `offered` is selected by this platform.

        Without a variant any will do; an entry without one has the usual one (arm64 v8, arm v7).
        An entry without a platform never matches.
        """
        if offered is None or (self.os, self.architecture) != (offered.os, offered.architecture):
            return False
        usual = _DEFAULT_VARIANTS.get(self.architecture, "")
        return not self.variant or self.variant == (offered.variant or usual)

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)
