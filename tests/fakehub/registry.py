"""The registry's own answers (OCI distribution-spec; Docker Hub's ways where it differs)."""

import base64
import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs, quote, unquote

from multidict import CIMultiDict

from .access import Access
from .answer import Answer, as_json, error, plain
from .blobs import Cdn, direct, unknown
from .bodies import Bytes
from .catalog import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, Catalog, Manifest, Repository
from .connection import Request
from .faults import RateLimited
from .ledger import Kind, Seen
from .settings import Settings

ROUTES: tuple[tuple[str, Kind], ...] = (
    (r"/v2/?", "ping"),
    (r"/v2/_catalog", "catalog"),
    (r"/v2/(?P<repository>.+)/manifests/(?P<reference>[^/]+)", "manifest"),
    (r"/v2/(?P<repository>.+)/blobs/uploads/.*", "upload"),
    (r"/v2/(?P<repository>.+)/blobs/(?P<reference>[^/]+)", "blob"),
    (r"/v2/(?P<repository>.+)/tags/list", "tags"),
    (r"/v2/(?P<repository>.+)/referrers/(?P<reference>[^/]+)", "referrers"),
)
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def route(path: str) -> tuple[Kind, dict[str, str]]:
    """What a path asks for, with the names in it decoded."""
    for pattern, kind in ROUTES:
        if found := re.fullmatch(pattern, unquote(path)):
            return kind, found.groupdict()
    return "other", {}


class Registry:
    def __init__(self, settings: Settings, catalog: Catalog, access: Access, cdn: Cdn) -> None:
        self._settings = settings
        self._catalog = catalog
        self._access = access
        self._cdn = cdn
        self.base = ""

    def answer(self, request: Request, seen: Seen) -> Answer:
        answer = self._answer(request, seen)
        answer.headers["Docker-Distribution-Api-Version"] = "registry/2.0"
        answer.headers["Strict-Transport-Security"] = "max-age=31536000"
        if seen.kind == "manifest" and self._settings.ratelimit_limit is not None:
            answer.headers["docker-ratelimit-source"] = request.client
        return answer

    def _answer(self, request: Request, seen: Seen) -> Answer:
        if request.method not in ("GET", "HEAD"):
            return self._access.refuse(seen, "pull,push") or error(405, "UNSUPPORTED", "read only")
        if refusal := self._access.refuse(seen):
            return refusal
        if seen.kind == "ping":
            return as_json(200, {})
        repository = self._catalog.repositories.get(seen.repository or "")
        if repository is None:
            return error(404, "NAME_UNKNOWN", "repository name not known to registry", {"name": seen.repository})
        if seen.kind == "manifest":
            return self._manifest(request, seen, repository)
        if seen.kind == "blob":
            return self._blob(request, seen, repository)
        if seen.kind == "tags":
            return self._tags(seen, repository)
        if seen.kind == "referrers":
            return self._referrers(seen, repository)
        return error(404, "UNSUPPORTED", "no such page")

    def _manifest(self, request: Request, seen: Seen, repository: Repository) -> Answer:
        if request.method == "GET" and self._spent():
            return RateLimited(self._settings.retry_after).change(seen, Answer(429))
        reference = seen.reference or ""
        digest = reference if ":" in reference else repository.tags.get(reference)
        if digest is not None and not DIGEST.fullmatch(digest):
            return error(400, "DIGEST_INVALID", "provided digest did not match uploaded content")
        manifest = repository.manifests.get(digest or "")
        if digest is None or manifest is None:
            return error(404, "MANIFEST_UNKNOWN", "manifest unknown", {"Tag": reference})
        if not _accepts(request, manifest.media_type):
            what = "OCI index" if manifest.media_type in (OCI_INDEX, DOCKER_LIST) else "OCI manifest"
            plural = "indexes" if what == "OCI index" else "manifests"
            message = f"{what} found, but accept header does not support OCI {plural}"
            return error(404, "MANIFEST_UNKNOWN", message)
        return self._held(request, digest, manifest)

    def _held(self, request: Request, digest: str, manifest: Manifest) -> Answer:
        headers = CIMultiDict(
            {
                "Content-Type": manifest.media_type,
                "Docker-Content-Digest": digest,
                "ETag": f'"{digest}"',
            }
        )
        pull = request.method == "GET"
        if self._settings.ratelimit_limit is not None:
            window = f";w={self._settings.ratelimit_window}"
            headers["ratelimit-limit"] = f"{self._settings.ratelimit_limit}{window}"
            headers["ratelimit-remaining"] = f"{self._settings.ratelimit_remaining - pull}{window}"
        if request.headers.get("If-None-Match", "").strip('"') == digest:
            return Answer(304, headers, digest=digest, pull=pull)
        return Answer(200, headers, Bytes(manifest.raw), digest=digest, pull=pull)

    def _spent(self) -> bool:
        return self._settings.ratelimit_limit is not None and self._settings.ratelimit_remaining <= 0

    def _blob(self, request: Request, seen: Seen, repository: Repository) -> Answer:
        digest = seen.reference or ""
        if not DIGEST.fullmatch(digest):
            return error(400, "DIGEST_INVALID", "provided digest did not match uploaded content")
        blob = repository.blobs.get(digest)
        if blob is None:
            return unknown(digest)
        redirect = self._settings.redirect_blobs and (request.method == "GET" or self._settings.redirect_head)
        if not redirect:
            return direct(request, blob)
        location = self._cdn.location(request.method, str(seen.repository), blob)
        page = f'<a href="{location.replace("&", "&amp;")}">Temporary Redirect</a>.\n\n'.encode()
        return plain(307, page, "text/html; charset=utf-8", {"Location": location})

    def _tags(self, seen: Seen, repository: Repository) -> Answer:
        query = _query(seen)
        if query is None:
            return error(400, "PAGINATION_INVALID", "this is no page of this list")
        count = query.get("n", str(self._settings.page_size))
        if not count.isdecimal():
            return error(400, "PAGINATION_NUMBER_INVALID", "invalid number of results requested", {"n": count})
        rest = sorted(tag for tag in repository.tags if tag > query.get("last", ""))
        page = rest[: min(int(count), self._settings.page_size)]
        answer = as_json(200, {"name": seen.repository, "tags": page})
        if page and len(page) < len(rest):
            answer.headers["Link"] = self._link(seen, f"last={quote(page[-1])}&n={len(page)}")
        return answer

    def _link(self, seen: Seen, query: str) -> str:
        """A link to the next page (RFC 8288), whose query may be the registry's own affair."""
        base = self.base if self._settings.absolute_links else ""
        if self._settings.opaque_links:
            query = f"next_page={base64.b64encode(query.encode()).decode()}"
        return f'<{base}{seen.path}?{query}>; rel="next"'

    def _referrers(self, seen: Seen, repository: Repository) -> Answer:
        if not self._settings.referrers:
            return plain(404, b"404 page not found\n", "text/plain; charset=utf-8")
        if not DIGEST.fullmatch(seen.reference or ""):
            return error(400, "DIGEST_INVALID", "provided digest did not match uploaded content")
        query = _query(seen)
        if query is None:
            return error(400, "PAGINATION_INVALID", "this is no page of this list")
        wanted = query.get("artifactType") if self._settings.filter_referrers else None
        found = [
            descriptor
            for digest, manifest in repository.manifests.items()
            if (descriptor := _referrer(digest, manifest, seen.reference or "")) and wanted in (None, descriptor["artifactType"])
        ]
        start = int(query.get("start", "0"))
        stop = start + self._settings.page_size
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": found[start:stop]}
        headers = {"OCI-Filters-Applied": "artifactType"} if wanted else {}
        if stop < len(found):
            headers["Link"] = self._link(seen, f"start={stop}" + (f"&artifactType={quote(wanted)}" if wanted else ""))
        return plain(200, json.dumps(index).encode(), OCI_INDEX, headers)


def _query(seen: Seen) -> dict[str, str] | None:
    """The parameters of a list, those of an opaque link included; None if that is not exactly as it was given out."""
    query = seen.query
    if query.startswith("next_page="):
        try:
            query = base64.b64decode(query.removeprefix("next_page="), validate=True).decode()
        except ValueError:
            return None
    return {name: values[0] for name, values in parse_qs(query).items()}


def _accepts(request: Request, media_type: str) -> bool:
    values = ",".join(request.headers.getall("Accept", [])).split(",")
    accepted = {value.partition(";")[0].strip() for value in values}
    return bool(accepted & {media_type, "*/*"}) or (media_type == DOCKER_MANIFEST and accepted == {""})


def _referrer(digest: str, manifest: Manifest, subject: str) -> Mapping[str, Any] | None:
    content = json.loads(manifest.raw) if manifest.raw.startswith(b"{") else {}
    if content.get("subject", {}).get("digest") != subject:
        return None
    return {
        "mediaType": manifest.media_type,
        "digest": digest,
        "size": len(manifest.raw),
        "artifactType": content.get("artifactType") or content.get("config", {}).get("mediaType"),
        "annotations": content.get("annotations", {}),
    }
