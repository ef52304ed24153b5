"""The host names of a certificate, and the end of its validity."""

from __future__ import annotations

from datetime import UTC, datetime

# DER (X.690) of the object identifier of subjectAltName (RFC 5280 section 4.2.1.6).
_SUBJECT_ALT_NAME = bytes.fromhex("0603551d11")
_BOOLEAN, _OCTETS, _SEQUENCE, _DNS_NAME = 0x01, 0x04, 0x30, 0x82
_UTC_TIME, _VERSION = 0x17, 0xA0


def dns_names(der: bytes) -> frozenset[str]:
    """The host names of a certificate, which may begin with `*.`; none if it has no such extension, or cannot be read.

    Args:
        der: a valid certificate: only one extension is read.
    """
    at = der.find(_SUBJECT_ALT_NAME)
    if at < 0:
        return frozenset()
    try:
        kind, value, at = _element(der, at + len(_SUBJECT_ALT_NAME))
        if kind == _BOOLEAN:
            # Whether the extension is critical.
            kind, value, _ = _element(der, at)
        if kind != _OCTETS:
            return frozenset()
        kind, names, _ = _element(value, 0)
        return frozenset(_names(names)) if kind == _SEQUENCE else frozenset()
    except (IndexError, ValueError):
        return frozenset()


def not_after(der: bytes) -> float | None:
    """Return when a certificate expires (RFC 5280 section 4.1.2.5), in seconds since the epoch; None if it cannot be read."""
    try:
        _, certificate, _ = _element(der, 0)
        _, signed, _ = _element(certificate, 0)
        kind, _, at = _element(signed, 0)
        # A version may precede the serial number; after that come signature, issuer and validity.
        for _ in range(3 if kind == _VERSION else 2):
            _, _, at = _element(signed, at)
        _, validity, _ = _element(signed, at)
        _, _, at = _element(validity, 0)
        kind, text, _ = _element(validity, at)
        form = "%y%m%d%H%M%SZ" if kind == _UTC_TIME else "%Y%m%d%H%M%SZ"
        return datetime.strptime(text.decode("ascii"), form).replace(tzinfo=UTC).timestamp()
    except (IndexError, ValueError):
        return None


def _names(data: bytes) -> list[str]:
    found, at = [], 0
    while at < len(data):
        kind, value, at = _element(data, at)
        if kind == _DNS_NAME:
            found.append(value.decode("ascii").lower())
    return found


def _element(data: bytes, at: int) -> tuple[int, bytes, int]:
    """Tag, content and end of the element at a place; raises IndexError or ValueError if it is cut off."""
    tag, length = data[at], data[at + 1]
    at += 2
    if length & 0x80:
        count = length & 0x7F
        length = int.from_bytes(data[at : at + count])
        at += count
    if at + length > len(data):
        raise ValueError("cut off")
    return tag, data[at : at + length], at + length
