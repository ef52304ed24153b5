"""TLS at the registry address, from files in PEM."""

from __future__ import annotations

import ssl
from pathlib import Path

from mirror.core.certificate import dns_names


def server_context(certificate: Path, key: Path | None = None, client_ca: Path | None = None) -> ssl.SSLContext:
    """A context of TLS 1.2 and later, with HTTP/1.1 as its only application protocol.

    Args:
        certificate: the server's certificate and those between it and its root.
        key: its private key, without a passphrase; None if that lies in the file of the certificate.
        client_ca: who issues the certificates of clients, which are then wanted of each.

    Raises:
        ValueError: saying which file is of no use.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    check_certificates(certificate)
    try:
        # Without an answer at hand, OpenSSL would ask for a passphrase at the terminal.
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


def certificate_names(path: Path) -> frozenset[str]:
    """The host names in a server's certificate, the first one of a file. Raises OSError or ValueError if that cannot be read."""
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    text = path.read_text(errors="replace")
    encoded = text.partition(begin)[2].partition(end)[0]
    return dns_names(ssl.PEM_cert_to_DER_cert(f"{begin}{encoded}{end}"))


def check_certificates(path: Path) -> None:
    """Raise ValueError if a file holds no certificates, or a damaged one."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except (ssl.SSLError, OSError) as error:
        raise ValueError(f"holds no certificates: {path}") from error
