"""Hosts that are known to be registries: a name that begins with one of them is no repository of another registry."""

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


def is_known_host(text: str) -> bool:
    """Whether this is the host of a registry that many people use."""
    host = text.lower()
    return host in _HOSTS or any(fnmatchcase(host, pattern) for pattern in _PATTERNS)
