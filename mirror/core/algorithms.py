"""The hash algorithms of digests (OCI image-spec, descriptor.md, Digests). Imports next to nothing: a scan starts at once."""

from types import MappingProxyType

HEX_DIGITS = MappingProxyType({"sha256": 64, "sha512": 128})
"""The algorithms, with the number of hex digits of their hashes."""
