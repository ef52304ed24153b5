"""What a path asks for."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.core.digest import Digest
from mirror.core.errors import InvalidDigest, InvalidInput, InvalidName, InvalidTag
from mirror.core.names import Repository, Tag
from mirror.errors import NotFound
from mirror.registry.routing import Router

HEX = "a" * 64
ROUTER = Router(["docker.io", "ghcr.io", "localhost:5005"], "docker.io")


def understood(target):
    """Kind, registry, path and reference as text."""
    route = ROUTER.route(target)
    repository = route.repository
    return (
        route.kind,
        repository and repository.registry,
        repository and repository.path,
        None if route.reference is None else str(route.reference),
    )


@pytest.mark.parametrize("target", ["/v2", "/v2/", "/v2/?x=1", "/docker.io/v2/", "/docker.io/v2", "/ghcr.io/v2/"])
def test_ping(target):
    """The root of the API, with and without a registry's name before it."""
    assert ROUTER.route(target).kind == "ping"


@pytest.mark.parametrize("target", ["", "/", "/?x=1", "http://mirror.example"])
def test_about(target):
    """The root of the address, for people; nothing of a registry."""
    assert understood(target) == ("about", None, None, None)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/v2/nginx/manifests/1", ("manifest", "docker.io", "library/nginx", "1")),
        ("/v2/library/nginx/manifests/1", ("manifest", "docker.io", "library/nginx", "1")),
        (f"/v2/a/b/blobs/sha256:{HEX}", ("blob", "docker.io", "a/b", f"sha256:{HEX}")),
        (f"/v2/a/b/blobs/sha256%3A{HEX}", ("blob", "docker.io", "a/b", f"sha256:{HEX}")),
        (f"/v2/a/b/blobs/sha512:{HEX * 2}", ("blob", "docker.io", "a/b", f"sha512:{HEX * 2}")),
        (f"/v2/a/b/referrers/sha256:{HEX}", ("referrers", "docker.io", "a/b", f"sha256:{HEX}")),
        ("/v2/a/b/tags/list", ("tags", "docker.io", "a/b", None)),
        ("/v2/_catalog", ("catalog", None, None, None)),
    ],
)
def test_kinds(target, expected):
    """Each kind of request, names escaped or not."""
    assert understood(target) == expected


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/v2/x/manifests/y/manifests/1", ("manifest", "docker.io", "x/manifests/y", "1")),
        ("/v2/x/manifests/manifests/manifests", ("manifest", "docker.io", "x/manifests", "manifests")),
        ("/v2/x/tags/list/manifests/1", ("manifest", "docker.io", "x/tags/list", "1")),
        ("/v2/x/tags/list/tags/list", ("tags", "docker.io", "x/tags/list", None)),
        ("/v2/x/tags/manifests/list", ("manifest", "docker.io", "x/tags", "list")),
        (f"/v2/x/blobs/y/blobs/sha256:{HEX}", ("blob", "docker.io", "x/blobs/y", f"sha256:{HEX}")),
        (f"/v2/manifests/blobs/blobs/sha256:{HEX}", ("blob", "docker.io", "manifests/blobs", f"sha256:{HEX}")),
        ("/v2/blobs/manifests/1", ("manifest", "docker.io", "library/blobs", "1")),
        ("/v2/a/v2/manifests/1", ("manifest", "docker.io", "a/v2", "1")),
        ("/v2/v2/v2/manifests/v2", ("manifest", "docker.io", "v2/v2", "v2")),
    ],
)
def test_names_with_words_of_the_api(target, expected):
    """Repositories may be called like parts of the API: paths are read from their right end."""
    assert understood(target) == expected


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/v2/a/b/manifests/1?ns=docker.io", ("docker.io", "a/b")),
        ("/v2/a/b/manifests/1?ns=registry-1.docker.io", ("docker.io", "a/b")),
        ("/v2/a/b/manifests/1?ns=GHCR.io", ("ghcr.io", "a/b")),
        ("/v2/a/manifests/1?ns=ghcr.io", ("ghcr.io", "a")),
        ("/v2/a/manifests/1?ns=localhost%3A5005", ("localhost:5005", "a")),
        ("/v2/a/b/manifests/1?ns=", ("docker.io", "a/b")),
        ("/v2/ghcr.io/a/b/manifests/1", ("ghcr.io", "a/b")),
        ("/v2/localhost:5005/a/manifests/1", ("localhost:5005", "a")),
        ("/ghcr.io/v2/a/b/manifests/1", ("ghcr.io", "a/b")),
        ("/ghcr.io/v2/v2/manifests/1", ("ghcr.io", "v2")),
        ("/ghcr.io/v2/docker.io/a/manifests/1", ("ghcr.io", "docker.io/a")),
        ("/v2/ghcr.io/a/manifests/1?ns=docker.io", ("docker.io", "ghcr.io/a")),
        ("/v2/ghcr.io/a/b/manifests/1?ns=ghcr.io", ("ghcr.io", "a/b")),
        ("/ghcr.io/v2/ghcr.io/a/manifests/1?ns=ghcr.io", ("ghcr.io", "a")),
        ("/v2/docker.io/a/manifests/1?ns=docker.io", ("docker.io", "library/a")),
        ("/v2/ghcr.io/manifests/1?ns=ghcr.io", ("ghcr.io", "ghcr.io")),
        ("/v2/ghcr.io/manifests/1", ("docker.io", "library/ghcr.io")),
        ("/v2/registry-1.docker.io/a/manifests/1", ("docker.io", "library/a")),
        ("/v2/quay.io/manifests/1", ("docker.io", "library/quay.io")),
        ("/v2/localhost/a/manifests/1", ("docker.io", "localhost/a")),
        ("/ghcr.io/v2/quay.io/a/manifests/1", ("ghcr.io", "quay.io/a")),
    ],
)
def test_registries(target, expected):
    """`ns` names the registry, else a first component that is a configured one, else it is the default one."""
    assert understood(target)[1:3] == expected


@pytest.mark.parametrize("ns", ["quay.io", "evil.example", "docker.io:444", "127.0.0.1", "169.254.169.254"])
def test_unknown_registry(ns):
    """A registry that is not configured is not there."""
    with pytest.raises(NotFound, match="not mirrored here"):
        ROUTER.route(f"/v2/a/b/manifests/1?ns={ns}")


@pytest.mark.parametrize(
    ("default", "first"),
    [
        ("docker.io", "quay.io"),
        ("docker.io", "registry.example"),
        ("docker.io", "10.0.0.1"),
        ("docker.io", "localhost:5000"),
        ("docker.io", "a:1"),
        ("ghcr.io", "quay.io"),
        ("ghcr.io", "eu.gcr.io"),
        ("ghcr.io", "123456789012.dkr.ecr.eu-west-1.amazonaws.com"),
        ("ghcr.io", "registry.example:5000"),
    ],
)
@pytest.mark.parametrize("rest", ["a/manifests/1", f"a/b/blobs/sha256:{HEX}", "a/tags/list"])
def test_unknown_registry_in_the_path(default, first, rest):
    """A first component that can only be a registry is refused by its name, and not asked of the default registry."""
    with pytest.raises(NotFound, match=f"{re.escape(first)}.*not mirrored here"):
        Router(["docker.io", "ghcr.io"], default).route(f"/v2/{first}/{rest}")


@pytest.mark.parametrize("first", ["my.group", "registry.example", "ghcr.io.example"])
def test_namespaces_with_dots(first):
    """Where Docker Hub is not the default, a namespace may have dots."""
    route = Router(["docker.io", "ghcr.io"], "ghcr.io").route(f"/v2/{first}/a/manifests/1")
    assert route.repository == Repository("ghcr.io", f"{first}/a")


@pytest.mark.parametrize(
    "target",
    [
        "/v1/", "/v2x", "/v2x/", "/quay.io/v2/", "/quay.io/v2/a/manifests/1", "//v2/", "/v2//", "/v2/_ping",
        "/v2/manifests/1", "/v2/a/b", "/v2/a/manifests", "/v2/a/manifests/1/", "/v2/a/tags", "/v2/a/tags/list/",
        "/v2/a/blobs/uploads/x/y", "/v2/_catalog/", "/metrics", "*", "/v2/;/", "/docker.io/x/v2/a/manifests/1",
    ],
)  # fmt: skip
def test_nothing_of_this_kind(target):
    """Everything else is nothing that this API has."""
    assert ROUTER.route(target) is None


@pytest.mark.parametrize(
    ("target", "error"),
    [
        ("/v2/A/b/manifests/1", InvalidName),
        ("/v2/../b/manifests/1", InvalidName),
        ("/v2/%2e%2e/b/manifests/1", InvalidName),
        ("/v2/a/../b/manifests/1", InvalidName),
        ("/v2/a%00/b/manifests/1", InvalidName),
        ("/v2/a%0d%0ab/manifests/1", InvalidName),
        ("/v2/a b/manifests/1", InvalidName),
        ("/v2/%C3%A4/b/manifests/1", InvalidName),
        ("/v2/a%252Fb/manifests/1", InvalidName),
        ("/v2//a/b/manifests/1", InvalidName),
        (f"/v2/{'a' * 256}/manifests/1", InvalidName),
        (f"/v2/{'a' * 250}/manifests/1", InvalidName),
        ("/v2/a/manifests/1?ns=..%2F..", InvalidName),
        ("/v2/a/manifests/1?ns=a%20b", InvalidName),
        ("/v2/a/manifests/.1", InvalidTag),
        ("/v2/a/manifests/1%0a", InvalidTag),
        (f"/v2/a/manifests/{'a' * 129}", InvalidTag),
        ("/v2/a/manifests/%D9%A3", InvalidTag),
        ("/v2/a/manifests/sha256:x", InvalidDigest),
        (f"/v2/a/manifests/sha256:{HEX.upper()}", InvalidDigest),
        (f"/v2/a/blobs/sha384:{HEX}", InvalidDigest),
        (f"/v2/a/blobs/sha256:{HEX}a", InvalidDigest),
        (f"/v2/a/blobs/sha256:{HEX}%0a", InvalidDigest),
        ("/v2/a/blobs/uploads", InvalidDigest),
        ("/v2/a/referrers/1", InvalidDigest),
        ("/v2/%ff/manifests/1", InvalidInput),
        ("/v2/a/manifests/1?" + "&".join("abcdefghijklmnopqrstuvwxyz"), InvalidInput),
    ],
)
def test_malformed(target, error):
    """What breaks a grammar is told by its kind, and nothing else is raised."""
    if "&" in target:
        target = target.replace("&", "=1&")
    with pytest.raises(error):
        ROUTER.route(target)


def test_query_and_path_are_kept():
    """What the client asked beside the path stays, decoded; the path stays as it was written."""
    route = ROUTER.route("/v2/li%62rary/a/tags/list?n=5&last=a%20b&x=&n=6")
    assert route.path == "/v2/li%62rary/a/tags/list"
    assert route.repository == Repository("docker.io", "library/a")
    assert (route.parameter("n"), route.parameter("last"), route.parameter("y")) == ("5", "a b", None)


@given(st.text(max_size=60))
def test_any_text(text):
    """No target makes anything but a route, nothing, or an error of ours."""
    for target in (text, f"/v2/{text}", f"/v2/{text}/manifests/1", f"/v2/a/manifests/{text}", f"/v2/?ns={text}"):
        try:
            route = ROUTER.route(target)
        except (InvalidInput, NotFound):
            continue
        assert route is None or route.reference is None or isinstance(route.reference, Tag | Digest)


@given(st.binary(max_size=40))
def test_any_bytes(raw):
    """No percent-encoded bytes get past the grammar: a path in the store can only come from a parsed digest."""
    escaped = "".join(f"%{byte:02x}" for byte in raw)
    try:
        route = ROUTER.route(f"/v2/{escaped}/blobs/sha256:{HEX}")
    except (InvalidInput, NotFound):
        return
    assert route is None or ".." not in route.repository.path
