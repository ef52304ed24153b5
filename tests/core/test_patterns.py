"""Patterns match what their documentation says and nothing more."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.core.digest import Digest
from mirror.core.errors import InvalidDigest, InvalidInput, InvalidName, InvalidRegistry, InvalidTag
from mirror.core.names import ImageName, ImagePattern, PathPattern, Repository, Tag

from .strategies import digests, paths, registries, tags

DIGEST = Digest.of(b"x")


def matches(pattern, text, default_registry="docker.io"):
    name = ImageName.parse(text)
    return ImagePattern.parse(pattern, default_registry).matches(name.repository, name.tag, name.digest)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("docker.io/library/nginx:*", "nginx:1"),
        ("nginx", "nginx:1"),
        ("nginx", "nginx"),
        ("nginx", f"nginx@{DIGEST}"),
        ("docker.io/nginx", "nginx:1"),
        ("index.docker.io/nginx", "nginx:1"),
        ("ngin?", "nginx:1"),
        ("ngin*", "nginx:1"),
        ("ngin*", "nginxinc/unprivileged:1"),
        ("*", "nginx:1"),
        ("*", "user/app:1"),
        ("*:latest", "user/app:latest"),
        ("*/*:latest", "nginx:latest"),
        ("*/*:latest", "ghcr.io/a/b:latest"),
        ("*/nginx", "nginx:1"),
        ("*/nginx", "quay.io/nginx:1"),
        ("*/library/nginx", "nginx:1"),
        ("*.io/library/nginx", "nginx:1"),
        ("GHCR.io/owner/*", "ghcr.io/owner/a/b/c"),
        (f"ghcr.io/owner/*@{DIGEST}", f"ghcr.io/owner/app@{DIGEST}"),
        ("ghcr.io/owner/*@sha256:*", f"ghcr.io/owner/app:1@{DIGEST}"),
        (f"nginx:1.*@{DIGEST}", f"nginx:1.2@{DIGEST}"),
        ("nginx:[0-9]*", "nginx:1.27"),
        ("nginx:[!0-9]*", "nginx:alpine"),
        ("[::1]:5000/x", "[::1]:5000/x:1"),
        ("localhost:*/x", "localhost:5000/x:1"),
        ("li*/nginx", "library/nginx:1"),
    ],
)
def test_image_patterns_that_match(pattern, text):
    """Globs, short names, and patterns without tag and digest cover these images."""
    assert matches(pattern, text)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("nginx", "ghcr.io/library/nginx:1"),
        ("nginx", "nginx-extra:1"),
        ("nginx", "user/nginx:1"),
        ("user/nginx", "library/user/nginx:1"),
        ("nginx:1", "nginx:1.27"),
        ("nginx:1.*", "nginx:1"),
        ("nginx:*", f"nginx@{DIGEST}"),
        (f"nginx@{DIGEST}", "nginx:1"),
        (f"nginx:1@{DIGEST}", f"nginx:2@{DIGEST}"),
        (f"nginx:1@{DIGEST}", f"nginx:1@{Digest.of(b'y')}"),
        ("*", "ghcr.io/x/y:1"),
        ("*/nginx", "user/nginx:1"),
        ("li*/nginx", "ghcr.io/library/nginx:1"),
        ("nginx:[0-9]*", "nginx:alpine"),
        ("nginx:latest", "nginx:LATEST"),
        ("ghcr.io/owner/*", "ghcr.io/owners/x"),
        ("ghcr.io/nginx", "ghcr.io/library/nginx"),
        ("ghcr.io.*/x", "ghcrxio/x"),
    ],
)
def test_image_patterns_that_do_not_match(pattern, text):
    """Other registries, other tags, longer names and the wrong kind of reference are not covered."""
    assert not matches(pattern, text)


def test_default_registry_of_a_pattern():
    """A pattern without a registry is about the default registry."""
    assert matches("x/y", "quay.io/x/y:1", default_registry="quay.io")
    assert not matches("x/y", "x/y:1", default_registry="quay.io")


@pytest.mark.parametrize(
    ("pattern", "error"),
    [
        ("", InvalidName),
        ("nginx:", InvalidTag),
        ("nginx:-x", InvalidTag),
        ("nginx:a b*", InvalidTag),
        ("nginx@", InvalidDigest),
        ("nginx@sha256:abc", InvalidDigest),
        ("nginx@sha256:ABC*", InvalidDigest),
        ("Nginx*", InvalidName),
        ("ngin[a:b]x", InvalidTag),
        ("a..b", InvalidName),
        ("a_b.*/x", InvalidRegistry),
        ("*" * 513, InvalidName),
    ],
)
def test_patterns_that_could_never_match_are_refused(pattern, error):
    """A typing error in a pattern is reported and does not silently match nothing."""
    with pytest.raises(error):
        ImagePattern.parse(pattern)


@given(registries, paths, st.none() | tags, st.none() | digests)
def test_an_image_is_a_pattern_for_itself(registry, path, tag, digest):
    """The full name of an image is a pattern for it, and a pattern as text reads back as itself."""
    name = ImageName(Repository.parse(registry, path), None if tag is None else Tag(tag), digest)
    pattern = ImagePattern.parse(str(name))
    assert pattern.matches(name.repository, name.tag, name.digest)
    assert ImagePattern.parse(str(pattern)) == pattern


@given(registries, paths, tags, digests)
def test_everything(registry, path, tag, digest):
    """*/* matches every image of every registry."""
    assert ImagePattern.parse("*/*").matches(Repository.parse(registry, path), Tag(tag), digest)


@pytest.mark.parametrize(
    ("pattern", "path", "tag", "expected"),
    [
        ("library/*", "library/nginx", "1", True),
        ("library/*", "library/nginx", None, True),
        ("library/*", "user/nginx", "1", False),
        ("bitnami/*:1.*", "bitnami/redis", "1.2", True),
        ("bitnami/*:1.*", "bitnami/redis", "2.1", False),
        ("bitnami/*:1.*", "bitnami/redis", None, False),
        ("*/*:latest", "library/nginx", "latest", True),
        ("library/*:*.*.*", "library/nginx", "1.27.0", True),
        ("library/*:*.*.*", "library/nginx", "1.27", False),
        ("ghcr.io/*", "owner/app", "1", False),
    ],
)
def test_path_patterns(pattern, path, tag, expected):
    """A path pattern is about path and tag; with a tag part it does not match a request by digest."""
    assert PathPattern.parse(pattern).matches(path, None if tag is None else Tag(tag)) is expected


def test_path_pattern_by_path_alone():
    """What is asked by digest can be held against the path part of a pattern with a tag part."""
    pattern = PathPattern.parse("bitnami/*:1.*")
    assert pattern.matches_path("bitnami/redis")
    assert not pattern.matches_path("library/redis")


def test_short_names_in_path_patterns():
    """On Docker Hub nginx means library/nginx; for another registry, or none named, it does not."""
    assert PathPattern.parse("nginx", "docker.io").matches("library/nginx", None)
    assert not PathPattern.parse("nginx", "ghcr.io").matches("library/nginx", None)
    assert not PathPattern.parse("nginx").matches("library/nginx", None)


def test_path_pattern_takes_no_digest():
    """A digest in a path pattern raises InvalidName."""
    with pytest.raises(InvalidName):
        PathPattern.parse(f"library/nginx@{DIGEST}")


@pytest.mark.parametrize("text", ["library/*", "bitnami/*:1.*"])
def test_path_pattern_as_text(text):
    """A path pattern is shown as it was written."""
    assert str(PathPattern.parse(text)) == text


@given(st.text() | st.text(alphabet="ab*?[]!-/:@.s2", max_size=30), paths, tags)
def test_arbitrary_text_is_a_pattern_or_invalid(text, path, tag):
    """No text makes parsing or matching raise anything but InvalidInput."""
    try:
        pattern = ImagePattern.parse(text)
        relative = PathPattern.parse(text)
    except InvalidInput:
        return
    pattern.matches(Repository("docker.io", path), Tag(tag), DIGEST)
    relative.matches(path, Tag(tag))


def test_a_hostile_pattern_is_not_slow():
    """A pattern of many stars against a long path that does not match takes no time to speak of."""
    assert not PathPattern.parse("*a" * 200 + "*b").matches("a" * 255, None)
