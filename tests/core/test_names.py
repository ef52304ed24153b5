"""Names are accepted by the specification's grammar, and Docker's short names are completed."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.core.digest import Digest
from mirror.core.errors import InvalidDigest, InvalidInput, InvalidName, InvalidRegistry, InvalidTag
from mirror.core.names import (
    ImageName,
    Repository,
    Tag,
    canonical_registry,
    parse_path,
    parse_reference,
    parse_registry,
)

from .strategies import digests, paths, registries, tags

DIGEST = Digest.of(b"x")
# The grammar as the specification writes it, apart from what the code uses.
SPEC_NAME = r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*"


def image(registry, path, tag=None, digest=None):
    return ImageName(Repository(registry, path), None if tag is None else Tag(tag), digest)


@pytest.mark.parametrize("path", ["a", "a.b_c__d-e---f/0", "x/manifests/y", "a/b/c/d", "a" * 255])
def test_valid_paths(path):
    """Every separator of the specification and any number of components is accepted, up to 255 characters."""
    assert parse_path(path) == path


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "a/",
        "/a",
        "a//b",
        "a..b",
        "a___b",
        "a._b",
        "-a",
        "a-",
        ".a",
        "A",
        "a\n",
        "a b",
        "é",
        "a" * 256,
        "../a",
        "a/../b",
        "a:b",
        "a@b",
        "a%2fb",
        "a\\b",
        "١",
    ],
)
def test_invalid_paths(path):
    """Anything outside the grammar raises InvalidName."""
    with pytest.raises(InvalidName):
        parse_path(path)


@given(st.text(alphabet="abz019._-/A:", max_size=24) | st.text(max_size=8))
def test_path_accepts_exactly_the_grammar(text):
    """Whatever the text, it is accepted if and only if the specification's expression accepts it."""
    valid = re.compile(SPEC_NAME, re.ASCII).fullmatch(text) is not None
    try:
        assert parse_path(text) == text
        assert valid
    except InvalidName:
        assert not valid


@pytest.mark.parametrize("tag", ["latest", "1.27", "_x", "A-b.c_d", "sha256-" + "a" * 64 + ".sig", "a" * 128])
def test_valid_tags(tag):
    """Tags of the grammar are accepted, up to 128 characters."""
    assert str(Tag.parse(tag)) == tag


@pytest.mark.parametrize("tag", ["", ".a", "-a", "a:b", "a/b", "a\n", "a" * 129, "é", "a b", "a*"])
def test_invalid_tags(tag):
    """Anything outside the grammar raises InvalidTag."""
    with pytest.raises(InvalidTag):
        Tag.parse(tag)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("GHCR.io", "ghcr.io"),
        ("localhost", "localhost"),
        ("localhost:5000", "localhost:5000"),
        ("10.0.0.1:80", "10.0.0.1:80"),
        ("[::1]:5000", "[::1]:5000"),
        ("registry-1.docker.io", "registry-1.docker.io"),
    ],
)
def test_valid_registries(text, expected):
    """Hosts and addresses with an optional port are accepted and written in lower case."""
    assert parse_registry(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":5000",
        "a:",
        "a:0",
        "a:65536",
        "a:99999999999",
        "a b",
        "a/b",
        "-a.io",
        "a-.io",
        "a..b",
        "a_b.io",
        "a.io\n",
        "u@a.io",
        "https://a.io",
        "é.io",
        "Kelvin.io",
        "a" * 254,
        "::1",
    ],
)
def test_invalid_registries(text):
    """Anything else raises InvalidRegistry, look-alike letters included."""
    with pytest.raises(InvalidRegistry):
        parse_registry(text)


def test_docker_hub_has_one_name():
    """All host names of Docker Hub become docker.io, so that one image has one cache key."""
    names = ["docker.io", "Index.Docker.io", "registry-1.docker.io"]
    assert {canonical_registry(name) for name in names} == {"docker.io"}


def test_library_only_on_docker_hub():
    """A single component gets library/ in front on Docker Hub and nowhere else."""
    assert str(Repository.parse("docker.io", "nginx")) == "docker.io/library/nginx"
    assert str(Repository.parse("registry-1.docker.io", "nginx")) == "docker.io/library/nginx"
    assert str(Repository.parse("docker.io", "user/app")) == "docker.io/user/app"
    assert str(Repository.parse("ghcr.io", "nginx")) == "ghcr.io/nginx"


def test_library_counts_for_the_length():
    """A path that gets too long by library/ is refused."""
    with pytest.raises(InvalidName):
        Repository.parse("docker.io", "a" * 250)


@given(digests)
def test_a_colon_makes_a_digest(digest):
    """A reference with a colon is a digest."""
    assert parse_reference(str(digest)) == digest


@given(tags)
def test_no_colon_makes_a_tag(tag):
    """A reference without a colon is a tag."""
    assert parse_reference(tag) == Tag(tag)


def test_a_bad_digest_is_not_taken_for_a_tag():
    """A malformed digest is reported as a digest."""
    with pytest.raises(InvalidDigest):
        parse_reference("sha256:abc")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nginx", image("docker.io", "library/nginx")),
        ("nginx:1.27", image("docker.io", "library/nginx", "1.27")),
        ("user/app", image("docker.io", "user/app")),
        ("docker.io/nginx", image("docker.io", "library/nginx")),
        ("index.docker.io/library/nginx:x", image("docker.io", "library/nginx", "x")),
        ("registry-1.docker.io/nginx", image("docker.io", "library/nginx")),
        ("localhost/x", image("localhost", "x")),
        ("localhost:5000/x", image("localhost:5000", "x")),
        ("localhost:5000", image("docker.io", "library/localhost", "5000")),
        ("h:5000/a/b:1", image("h:5000", "a/b", "1")),
        ("[::1]:5000/x:1", image("[::1]:5000", "x", "1")),
        ("GHCR.io/x/y", image("ghcr.io", "x/y")),
        (f"ghcr.io/x/y:1@{DIGEST}", image("ghcr.io", "x/y", "1", DIGEST)),
        (f"nginx@{DIGEST}", image("docker.io", "library/nginx", None, DIGEST)),
    ],
)
def test_image_names(text, expected):
    """Docker's short names, hosts with ports, tags and digests are read as Docker reads them."""
    assert ImageName.parse(text) == expected


def test_default_registry():
    """Names without a registry are in the default registry, without library/ if that is not Docker Hub."""
    assert ImageName.parse("nginx", "quay.io") == image("quay.io", "nginx")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", InvalidName),
        (":1", InvalidName),
        ("nginx:", InvalidTag),
        ("nginx:a:b", InvalidTag),
        ("nginx@", InvalidDigest),
        ("nginx@sha256:abc", InvalidDigest),
        (f"nginx@{DIGEST}@{DIGEST}", InvalidDigest),
        ("ghcr.io/", InvalidName),
        ("Nginx", InvalidName),
        ("https://ghcr.io/x", InvalidRegistry),
        ("a.io:99999/x", InvalidRegistry),
        ("nginx ", InvalidName),
    ],
)
def test_invalid_image_names(text, error):
    """A bad name raises the error of the part that is wrong."""
    with pytest.raises(error):
        ImageName.parse(text)


def test_which_reference_counts():
    """The digest decides before the tag, and without both it is latest."""
    assert ImageName.parse(f"nginx:1@{DIGEST}").reference == DIGEST
    assert ImageName.parse("nginx:1").reference == Tag("1")
    assert ImageName.parse("nginx").reference == Tag("latest")


@given(registries, paths, st.none() | tags, st.none() | digests)
def test_image_name_round_trip(registry, path, tag, digest):
    """An image name written as text reads back as an equal image name."""
    name = ImageName(Repository.parse(registry, path), None if tag is None else Tag(tag), digest)
    assert ImageName.parse(str(name)) == name


@given(st.text() | st.text(alphabet="a.:/@[]-sh256", max_size=30))
def test_arbitrary_text_is_a_name_or_invalid(text):
    """No text at all makes the parsers raise anything but InvalidInput."""
    for parse in (ImageName.parse, parse_reference, parse_registry, canonical_registry):
        try:
            parse(text)
        except InvalidInput:
            continue
