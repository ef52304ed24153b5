"""Certificates of an authority of the test's own, made by the `openssl` command."""

import subprocess
from pathlib import Path

from tests.support.waiting import LIMIT

_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]


class Authority:
    """Issues certificates for 127.0.0.1 and localhost.

    Attributes:
        certificate: the authority's own; who trusts it trusts what it issued.
    """

    def __init__(self, directory: Path, name: str = "authority") -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self.certificate = directory / f"{name}.pem"
        self._key = directory / f"{name}.key"
        subject = ["-subj", f"/CN={name}", "-days", "2"]
        openssl("req", "-x509", *_KEY, *subject, "-keyout", self._key, "-out", self.certificate)

    def issue(self, name: str, names: str = "IP:127.0.0.1,IP:127.0.0.2,DNS:localhost", days: int = 2) -> tuple[Path, Path]:
        """A certificate with `name` as its common name and these alternative names, and its key."""
        certificate, key, request = (self._directory / f"{name}.{kind}" for kind in ("pem", "key", "csr"))
        extensions = self._directory / "extensions"
        extensions.write_text(f"subjectAltName={names}\n")
        openssl("req", "-new", *_KEY, "-subj", f"/CN={name}", "-keyout", key, "-out", request)
        openssl(
            "x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self._key, "-CAcreateserial",
            "-days", days, "-extfile", extensions, "-out", certificate,
        )  # fmt: skip
        return certificate, key


def openssl(*arguments: object) -> None:
    """Run the command; it has to succeed."""
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, timeout=LIMIT)
