"""Bodies of blobs with ranges, and the signed addresses of the CDN."""

import base64
import hmac
import re
from urllib.parse import parse_qs, quote

from multidict import CIMultiDict

from .answer import Answer, error, plain
from .bodies import Body, Bytes, Part
from .catalog import Blob, Catalog
from .connection import Request
from .header_faults import EXPIRED
from .ledger import Seen
from .settings import Settings

SECRET = b"secret of the fake's CDN"
DENIED = b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>SignatureDoesNotMatch</Code></Error>'
TWO_AUTHS = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>InvalidArgument</Code>'
    b"<Message>Only one auth mechanism allowed</Message></Error>"
)


def ranged(request: Request, body: Body, headers: dict[str, str]) -> Answer:
    """200, 206 or 416 (RFC 9110 section 14); several ranges and other units are ignored."""
    answer = Answer(200, CIMultiDict(headers | {"Accept-Ranges": "bytes"}), body)
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("Range", ""))
    condition = request.headers.get("If-Range", headers["ETag"])
    if request.method != "GET" or found is None or condition != headers["ETag"] or found[0] == "bytes=-":
        return answer
    first, last = found.groups()
    start = int(first) if first else max(0, body.size - int(last))
    stop = min(body.size, int(last) + 1) if first and last else body.size
    if start >= stop:
        answer.status, answer.body = 416, Bytes()
        answer.headers["Content-Range"] = f"bytes */{body.size}"
        return answer
    answer.status, answer.body = 206, Part(body, start, stop)
    answer.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{body.size}"
    return answer


class Cdn:
    """A store that knows signed addresses only, and nothing of registries."""

    def __init__(self, settings: Settings, catalog: Catalog) -> None:
        self._settings = settings
        self._catalog = catalog
        self.base = ""

    def location(self, method: str, repository: str, blob: Blob) -> str:
        """An address for one method, with percent-encoding that is part of what is signed."""
        hex_digits = blob.digest.split(":")[1]
        path = f"/registry-v2/docker/registry/v2/blobs/sha256/{hex_digits[:2]}/{hex_digits}/data"
        until = int(self._settings.now() + self._settings.url_lifetime)
        target = f"{path}?repository={quote(repository, safe='')}&verify={until}-"
        return self.base + target + _signature(method, target)

    @staticmethod
    def names(path: str, query: str) -> tuple[str | None, str | None]:
        """The repository and the digest of an address."""
        found = re.search(r"/sha256/../([0-9a-f]{64})/data$", path)
        repository = parse_qs(query).get("repository", [None])[0]
        return repository, f"sha256:{found[1]}" if found else None

    def answer(self, request: Request, seen: Seen) -> Answer:
        target, separator, signature = request.target.rpartition("-")
        if seen.authorization is not None:
            return plain(400, TWO_AUTHS, "application/xml")
        if not hmac.compare_digest(signature, _signature(request.method, target + separator)):
            return plain(403, DENIED, "application/xml")
        if int(re.sub(r".*verify=", "", target)) <= self._settings.now():
            return plain(403, EXPIRED, "application/xml")
        repository = self._catalog.repositories.get(str(seen.repository))
        blob = repository and repository.blobs.get(str(seen.reference))
        if not blob:
            return plain(404, b"<Error><Code>NoSuchKey</Code></Error>", "application/xml")
        headers = {
            "Content-Type": "application/octet-stream",
            "ETag": f'"{blob.digest[7:39]}"',
            "Cache-Control": "public, max-age=14400",
            "Set-Cookie": "__cf_bm=track-me; path=/; HttpOnly",
            "Vary": "Accept-Encoding",
            "CF-Cache-Status": "HIT",
            "Server": "cloudflare",
        }
        return ranged(request, blob.body, headers)


def direct(request: Request, blob: Blob) -> Answer:
    """A blob served by the registry itself."""
    headers = {
        "Content-Type": "application/octet-stream",
        "Docker-Content-Digest": blob.digest,
        "ETag": f'"{blob.digest}"',
        "Cache-Control": "max-age=31536000",
    }
    return ranged(request, blob.body, headers)


def unknown(digest: str) -> Answer:
    return error(404, "BLOB_UNKNOWN", "blob unknown to registry", {"digest": digest})


def _signature(method: str, target: str) -> str:
    raw = hmac.new(SECRET, f"{method} {target}".encode(), "sha256").digest()
    # Always with an encoded slash and an encoded equals sign: a client that quotes anew breaks it.
    return quote("v1/" + base64.b64encode(raw).decode(), safe="")
