"""Names of images: registry, repository, tag and reference, and the short forms that people type.

Grammar: OCI distribution-spec, Pulling manifests. Short names: distribution/reference, `reference.go`.

Patterns are globs as in `fnmatch`, case-sensitive: `*`, `?`, `[..]`, `[!..]`, and `*` matches across `/`.
A class in brackets can neither contain `/`, `:` or `@` nor begin a registry.
"""

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final, TypeAlias

from mirror.core.digest import Digest
from mirror.core.errors import InvalidDigest, InvalidName, InvalidRegistry, InvalidTag

DOCKER_HUB: Final = "docker.io"

_HUB_ALIASES: Final = frozenset({"index.docker.io", "registry-1.docker.io"})
_MAX_PATH: Final = 255
_MAX_HOST: Final = 253
_COMPONENT: Final = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH: Final = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*", re.ASCII)
_TAG: Final = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}", re.ASCII)
_LABEL: Final = r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?"
_REGISTRY: Final = re.compile(rf"(?P<host>{_LABEL}(?:\.{_LABEL})*|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{{1,5}}))?", re.ASCII)
_MAX_PATTERN: Final = 512
_GLOB: Final = re.compile(r"[*?\[]")
_REGISTRY_GLOB: Final = re.compile(r"[a-z0-9.:*?\[\]!-]+", re.ASCII)
_PATH_GLOB: Final = re.compile(r"[a-z0-9._/*?\[\]!-]+", re.ASCII)
_TAG_GLOB: Final = re.compile(r"[a-zA-Z0-9._*?\[\]!-]+", re.ASCII)
_DIGEST_GLOB: Final = re.compile(r"[a-z0-9:*?\[\]!-]+", re.ASCII)


def parse_registry(text: str) -> str:
    """Read `host[:port]` and write it in lower case. Raises InvalidRegistry."""
    lowered = text.lower()
    # Lowering turns some letters outside ASCII into ASCII ones, so the text as sent is looked at, too.
    match = _REGISTRY.fullmatch(lowered) if text.isascii() else None
    if match is None or len(match["host"]) > _MAX_HOST:
        raise InvalidRegistry(text, "expected a host name or address with an optional port")
    if match["port"] is not None and not 0 < int(match["port"]) < 65536:
        raise InvalidRegistry(text, "the port is out of range")
    return lowered


def canonical_registry(text: str) -> str:
    """`parse_registry`, with Docker Hub's other host names turned into docker.io. Raises InvalidRegistry."""
    registry = parse_registry(text)
    return DOCKER_HUB if registry in _HUB_ALIASES else registry


def parse_path(text: str) -> str:
    """Check a repository's path within its registry (at most 255 characters). Raises InvalidName."""
    if len(text) > _MAX_PATH:
        raise InvalidName(text, f"longer than {_MAX_PATH} characters")
    if _PATH.fullmatch(text) is None:
        raise InvalidName(
            text,
            "expected lower-case letters and digits, separated by one of . _ __ - within components of /",
        )
    return text


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository and the registry it is in. Make one with `parse`: only that checks and completes it."""

    registry: str
    path: str

    @classmethod
    def parse(cls, registry: str, path: str) -> "Repository":
        """Check both; on Docker Hub `nginx` is `library/nginx`. Raises InvalidRegistry or InvalidName."""
        registry = canonical_registry(registry)
        parse_path(path)
        if registry == DOCKER_HUB and "/" not in path:
            path = parse_path(f"library/{path}")
        return cls(registry, path)

    def __str__(self) -> str:
        return f"{self.registry}/{self.path}"


@dataclass(frozen=True, slots=True)
class Tag:
    """A name that may move from one digest to another. Make one with `parse`."""

    value: str

    @classmethod
    def parse(cls, text: str) -> "Tag":
        """Check a tag. Raises InvalidTag."""
        if _TAG.fullmatch(text) is None:
            raise InvalidTag(text, "expected up to 128 letters, digits, . _ - not starting with . or -")
        return cls(text)

    def __str__(self) -> str:
        return self.value


Reference: TypeAlias = Tag | Digest

LATEST: Final = Tag("latest")


def parse_reference(text: str) -> Reference:
    """Read a manifest's reference; a colon makes it a digest. Raises InvalidDigest or InvalidTag."""
    return Digest.parse(text) if ":" in text else Tag.parse(text)


@dataclass(frozen=True, slots=True)
class ImageName:
    """An image as people name it: `[registry/]repository[:tag][@digest]`."""

    repository: Repository
    tag: Tag | None
    digest: Digest | None

    @classmethod
    def parse(cls, text: str, default_registry: str = DOCKER_HUB) -> "ImageName":
        """Read a name with Docker's short forms.

        The first of several components is a registry if it contains `.` or `:` or is `localhost`.
        Raises InvalidName, InvalidRegistry, InvalidTag or InvalidDigest.
        """
        name, tag, digest = _split_image(text)
        registry, path = _split_registry(name)
        return cls(
            Repository.parse(default_registry if registry is None else registry, path),
            None if tag is None else Tag.parse(tag),
            None if digest is None else Digest.parse(digest),
        )

    @property
    def reference(self) -> Reference:
        """The reference to request: the digest if there is one, else the tag, else `latest`."""
        return self.digest or self.tag or LATEST

    def __str__(self) -> str:
        tag = "" if self.tag is None else f":{self.tag}"
        digest = "" if self.digest is None else f"@{self.digest}"
        return f"{self.repository}{tag}{digest}"


@dataclass(frozen=True, slots=True)
class PathPattern:
    """A pattern over the repositories and tags of one registry, such as `library/*` or `bitnami/*:1.*`.

    Without a tag part it covers every tag and digest of the repositories it matches.
    With `short_names`, as on Docker Hub, a pattern without `/` also stands for `library/` and itself.
    """

    path: str
    tag: str | None
    short_names: bool = False

    @classmethod
    def parse(cls, text: str, registry: str | None = None) -> "PathPattern":
        """Read `path[:tag]`; `registry` decides which short names apply. Raises InvalidName or InvalidTag."""
        path, tag, digest = _split_image(_bounded(text))
        if digest is not None:
            raise InvalidName(text, "a digest is not allowed here")
        return cls(_path_glob(path), _tag_glob(tag), registry == DOCKER_HUB)

    def matches(self, path: str, tag: Tag | None) -> bool:
        """Whether the pattern covers this; one with a tag part never matches where there is no tag."""
        return self.matches_path(path) and _tag_matches(self.tag, tag)

    def matches_path(self, path: str) -> bool:
        """Whether some tag of this repository could match; decides about requests by digest."""
        return _path_matches(self.path, path, short_names=self.short_names)

    def __str__(self) -> str:
        return self.path if self.tag is None else f"{self.path}:{self.tag}"


@dataclass(frozen=True, slots=True)
class ImagePattern:
    """A pattern over the images of all registries, such as `docker.io/library/nginx:*` or `nginx`.

    The first of several components is the registry's pattern if it is exactly `*`, contains `.` or `:`, or is
    `localhost`; else the pattern is about the default registry: `*/nginx` is about all registries,
    `li*/nginx` about one. On Docker Hub a path without `/` also stands for `library/` and itself.
    Without tag and digest parts it covers the repository whole; with both, both have to match.
    """

    registry: str
    path: str
    tag: str | None
    digest: str | None

    @classmethod
    def parse(cls, text: str, default_registry: str = DOCKER_HUB) -> "ImagePattern":
        """Read `[registry/]path[:tag][@digest]`.

        Raises InvalidName, InvalidRegistry, InvalidTag or InvalidDigest.
        """
        name, tag, digest = _split_image(_bounded(text))
        registry, path = ("*", name[2:]) if name.startswith("*/") else _split_registry(name)
        return cls(
            _registry_glob(default_registry if registry is None else registry),
            _path_glob(path),
            _tag_glob(tag),
            _digest_glob(digest),
        )

    def matches(self, repository: Repository, tag: Tag | None, digest: Digest | None) -> bool:
        """Whether the pattern covers this; a tag or digest part never matches where there is none."""
        return (
            self.matches_repository(repository)
            and _tag_matches(self.tag, tag)
            and (self.digest is None or (digest is not None and fnmatchcase(str(digest), self.digest)))
        )

    def only_repository(self) -> Repository | None:
        """The one repository that can match, None if there may be several."""
        # The brackets of an IPv6 address are no class.
        if is_glob(self.path) or (is_glob(self.registry) and not self.registry.startswith("[")):
            return None
        return Repository.parse(self.registry, self.path)

    def matches_repository(self, repository: Repository) -> bool:
        """Whether some tag or digest of this repository could match."""
        registry = repository.registry
        # Equality first: the brackets of an IPv6 address are no class.
        return (registry == self.registry or fnmatchcase(registry, self.registry)) and _path_matches(
            self.path, repository.path, short_names=registry == DOCKER_HUB
        )

    def __str__(self) -> str:
        tag = "" if self.tag is None else f":{self.tag}"
        digest = "" if self.digest is None else f"@{self.digest}"
        return f"{self.registry}/{self.path}{tag}{digest}"


def _path_matches(pattern: str, path: str, *, short_names: bool) -> bool:
    also_library = short_names and "/" not in pattern
    return fnmatchcase(path, pattern) or (also_library and fnmatchcase(path, f"library/{pattern}"))


def _tag_matches(pattern: str | None, tag: Tag | None) -> bool:
    return pattern is None or (tag is not None and fnmatchcase(tag.value, pattern))


def _bounded(text: str) -> str:
    if len(text) > _MAX_PATTERN:
        raise InvalidName(text, f"longer than {_MAX_PATTERN} characters")
    return text


def is_glob(text: str) -> bool:
    """Whether a part of a pattern contains a wildcard."""
    return _GLOB.search(text) is not None


# A part without a glob has to be valid as it stands: a typing error would otherwise silently match nothing.


def _registry_glob(text: str) -> str:
    lowered = text.lower()
    if lowered.startswith("[") or not is_glob(lowered):
        return canonical_registry(lowered)
    if _REGISTRY_GLOB.fullmatch(lowered) is None:
        raise InvalidRegistry(text, "not a pattern over host[:port]")
    return lowered


def _path_glob(text: str) -> str:
    if not is_glob(text):
        return parse_path(text)
    if _PATH_GLOB.fullmatch(text) is None:
        raise InvalidName(text, "not a pattern over repository paths")
    return text


def _tag_glob(text: str | None) -> str | None:
    if text is None or not is_glob(text):
        return None if text is None else Tag.parse(text).value
    if _TAG_GLOB.fullmatch(text) is None:
        raise InvalidTag(text, "not a pattern over tags")
    return text


def _digest_glob(text: str | None) -> str | None:
    if text is None or not is_glob(text):
        return None if text is None else str(Digest.parse(text))
    if _DIGEST_GLOB.fullmatch(text) is None:
        raise InvalidDigest(text, "not a pattern over digests")
    return text


def _split_image(text: str) -> tuple[str, str | None, str | None]:
    """Cut `name[:tag][@digest]` into its parts without checking them."""
    rest, at, digest = text.partition("@")
    head, slash, last = rest.rpartition("/")
    name, colon, tag = last.partition(":")
    return head + slash + name, tag if colon else None, digest if at else None


def _split_registry(name: str) -> tuple[str | None, str]:
    """Cut a name into the registry, if its first component is one, and the path, without checking them."""
    first, slash, rest = name.partition("/")
    if slash and ("." in first or ":" in first or first.lower() == "localhost"):
        return first, rest
    return None, name
