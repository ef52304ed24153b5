"""Registries that many people use: their hosts, and the hosts that give tokens for them."""

from fnmatch import fnmatchcase
from typing import Final

_HOSTS: Final = frozenset(
    {
        "cgr.dev",
        "container-registry.oracle.com",
        "docker.elastic.co",
        "docker.io",
        "gcr.io",
        "ghcr.io",
        "icr.io",
        "index.docker.io",
        "k8s.gcr.io",
        "lscr.io",
        "mcr.microsoft.com",
        "nvcr.io",
        "public.ecr.aws",
        "quay.io",
        "registry-1.docker.io",
        "registry.access.redhat.com",
        "registry.digitalocean.com",
        "registry.gitlab.com",
        "registry.k8s.io",
        "registry.redhat.io",
    }
)
_PATTERNS: Final = ("*.azurecr.io", "*.dkr.ecr.*.amazonaws.com", "*.gcr.io", "*.icr.io", "*-docker.pkg.dev")

# By the `realm` of their challenges. A registry that is its own token host needs no entry.
_TOKEN_HOSTS: Final = {
    "docker.elastic.co": "docker-auth.elastic.co",
    "docker.io": "auth.docker.io",
    "index.docker.io": "auth.docker.io",
    "lscr.io": "ghcr.io",
    "registry-1.docker.io": "auth.docker.io",
    "registry.digitalocean.com": "api.digitalocean.com",
    "registry.gitlab.com": "gitlab.com",
}


def is_known_host(text: str) -> bool:
    """Whether this is the host of a well-known registry; a name that begins with it is no repository of another one."""
    host = text.lower()
    return host in _HOSTS or any(fnmatchcase(host, pattern) for pattern in _PATTERNS)


def known_token_host(host: str) -> str | None:
    """The host that gives tokens for a well-known registry, None if that is the registry itself or is not known."""
    return _TOKEN_HOSTS.get(host.lower())
