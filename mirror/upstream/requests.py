"""Requests to a registry."""

from __future__ import annotations

from dataclasses import dataclass, field

from yarl import URL


@dataclass(frozen=True)
class UpstreamRequest:
    """A request to a registry.

    Attributes:
        kind: for metrics and limits: manifest, blob, tags or referrers.
        repository: path of the repository, without the registry.
        rest: what follows the repository in the URL's path, for example `manifests/latest`.
        query: of the URL, encoded.
    """

    kind: str
    repository: str
    rest: str
    method: str = "GET"
    headers: dict[str, str] = field(default_factory=dict)
    query: str = ""

    def url(self, base: URL) -> URL:
        """Where it is sent."""
        url = base.joinpath("v2", *self.repository.split("/"), *self.rest.split("/"))
        return URL(f"{url}?{self.query}", encoded=True) if self.query else url
