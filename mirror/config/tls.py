"""TLS at the registry address, from files in PEM."""

from __future__ import annotations

import ssl
from pathlib import Path

from mirror.core.certificate import dns_names, not_after


def server_context(certificate: Path, key: Path | None = None, client_ca: Path | None = None) -> ssl.SSLContext:
    """Return a server's context of TLS 1.2 and later, with HTTP/1.1 as its only application protocol.

    Args:
        certificate: the server's certificate and the intermediate ones.
        key: its private key, without a passphrase; None if the file of the certificate holds it.
        client_ca: the authorities of client certificates, which are then required.

    Raises:
        ValueError: a file is unusable; the message names it.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    check_certificates(certificate)
    try:
        # Without a password, OpenSSL would prompt for one at the terminal.
        context.load_cert_chain(certificate, key, password=lambda: "")
    except (ssl.SSLError, OSError, ValueError) as error:
        raise ValueError(
            f"holds no key of the certificate in {certificate}, or one with a passphrase: {key or certificate}"
        ) from error
    if client_ca is not None:
        check_certificates(client_ca)
        context.load_verify_locations(client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(certificate: Path, key: Path, authority: Path) -> ssl.SSLContext:
    """Return the context of a node that shows a certificate to nodes of the same authority, whatever their names.

    Raises:
        ValueError: a file is unusable; the message names it.
    """
    check_certificates(authority)
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=authority)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Nodes come and go with their addresses; a request is signed for the node that it is meant for.
    context.check_hostname = False
    try:
        context.load_cert_chain(certificate, key, password=lambda: "")
    except (ssl.SSLError, OSError, ValueError) as error:
        raise ValueError(f"holds no key of the certificate in {certificate}, or one with a passphrase: {key}") from error
    return context


def certificate_names(path: Path) -> frozenset[str]:
    """Return the host names in the first certificate of a file. Raises OSError or ValueError if it cannot be read."""
    return dns_names(_first_certificate(path))


def certificate_end(path: Path) -> float | None:
    """Return when the first certificate of a file expires, in seconds since the epoch; raises like `certificate_names`."""
    return not_after(_first_certificate(path))


def _first_certificate(path: Path) -> bytes:
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    text = path.read_text(errors="replace")
    encoded = text.partition(begin)[2].partition(end)[0]
    return ssl.PEM_cert_to_DER_cert(f"{begin}{encoded}{end}")


def check_certificates(path: Path) -> None:
    """Raise ValueError if a file holds no certificates, or a damaged one."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except (ssl.SSLError, OSError) as error:
        raise ValueError(f"holds no certificates: {path}") from error
