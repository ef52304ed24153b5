"""A plain HTTP client for what the tests ask themselves: whole answers, and bodies read slowly."""

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPMessage, HTTPResponse
from urllib.parse import urlsplit

_TIMEOUT_SECONDS = 45
_MANIFEST_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)


@dataclass(frozen=True)
class Answer:
    """One complete HTTP response."""

    status: int
    headers: HTTPMessage
    body: bytes


def request(method: str, url: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> Answer:
    """Send one request and read the whole answer. Raises OSError or HTTPException when there is none."""
    with stream(method, url, body, headers) as response:
        return Answer(response.status, response.headers, response.read())


def get_manifest(base_url: str, repository: str, reference: str) -> Answer:
    """GET a manifest, accepting every modern type (OCI distribution-spec, Pulling manifests)."""
    accept = {"Accept": ", ".join(_MANIFEST_TYPES)}
    return request("GET", f"{base_url}/v2/{repository}/manifests/{reference}", headers=accept)


def answers(url: str) -> bool:
    """Whether a GET of this URL is answered with 200."""
    try:
        return request("GET", url).status == 200
    except (OSError, HTTPException):
        return False


@contextmanager
def stream(method: str, url: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> Iterator[HTTPResponse]:
    """Send one request and hand out the response with its body unread; the connection ends with the block."""
    parts = urlsplit(url)
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    with closing(HTTPConnection(parts.netloc, timeout=_TIMEOUT_SECONDS)) as connection:
        connection.request(method, target, body, dict(headers or {}))
        with connection.getresponse() as response:
            yield response
