"""Which images may be pulled."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.core.digest import Digest
from mirror.core.errors import InvalidInput
from mirror.core.names import PathPattern, Tag
from mirror.core.policy import Policy


def policy(allow=(), deny=(), registry="docker.io"):
    return Policy(*(tuple(PathPattern.parse(rule, registry) for rule in rules) for rules in (allow, deny)))


def tags(*names):
    return [Tag.parse(name) for name in names]


@pytest.mark.parametrize(
    ("allow", "deny", "path", "tag", "expected"),
    [
        ([], [], "a/b", "1", None),
        (["library/*"], [], "library/nginx", "1", None),
        (["library/*"], [], "evil/nginx", "1", "allow has no rule for it"),
        (["bitnami/*:1.*"], [], "bitnami/redis", "1.2", None),
        (["bitnami/*:1.*"], [], "bitnami/redis", "2.0", "allow has no rule for it"),
        (["library/*", "bitnami/*:1.*"], [], "bitnami/redis", "1.0", None),
        ([], ["*/*:latest"], "library/nginx", "latest", "deny: */*:latest"),
        ([], ["*/*:latest"], "library/nginx", "1", None),
        ([], ["evil/*"], "evil/x", "1", "deny: evil/*"),
        (["library/*"], ["library/nginx:1"], "library/nginx", "1", "deny: library/nginx:1"),
        (["library/*"], ["library/nginx:1"], "library/nginx", "2", None),
        (["nginx"], [], "library/nginx", "1", None),
        (["nginx"], [], "library/redis", "1", "allow has no rule for it"),
        ([], ["a/b:2", "a/*"], "a/b", "1", "deny: a/*"),
        (["library/nginx"], [], "library/nginx/more", "1", "allow has no rule for it"),
    ],
)
def test_tags(allow, deny, path, tag, expected):
    """`deny` speaks first, then `allow` has to cover the tag; an empty `allow` is everything."""
    assert policy(allow, deny).refuses_tag(path, Tag.parse(tag)) == expected


def test_short_names_are_docker_hubs():
    """A rule without a slash is about `library/` on Docker Hub only."""
    assert policy(["nginx"], registry="ghcr.io").refuses_tag("library/nginx", Tag("1")) is not None
    assert policy(["nginx"], registry="ghcr.io").refuses_tag("nginx", Tag("1")) is None


@pytest.mark.parametrize(
    ("allow", "deny", "known", "expected"),
    [
        ([], [], [], None),
        ([], ["a/*"], [], "deny: a/*"),
        ([], ["a/*"], ["1"], "deny: a/*"),
        (["b/*"], [], [], "allow has no rule for it"),
        (["a/*:1.*"], [], [], None),
        (["a/*:1.*"], [], ["1.0"], None),
        (["a/*:1.*"], [], ["2.0"], "allow has no rule for it"),
        (["a/*:1.*"], [], ["2.0", "1.0"], None),
        ([], ["*/*:latest"], [], None),
        ([], ["*/*:latest"], ["latest"], "deny: */*:latest"),
        ([], ["*/*:latest"], ["latest", "1"], None),
        (["a/*:1*"], ["*:1.0"], ["1.0", "2.0"], "deny: *:1.0"),
    ],
)
def test_digests(allow, deny, known, expected):
    """A digest is refused with its repository, or if every tag that is known to name it is."""
    assert policy(allow, deny).refuses_digest("a/b", tags(*known)) == expected


@pytest.mark.parametrize(
    ("allow", "deny", "expected"),
    [
        ([], [], None),
        ([], ["a/*:latest"], None),
        ([], ["a/*"], "deny: a/*"),
        (["a/*:1.*"], [], None),
        (["b/*"], [], "allow has no rule for it"),
        ([], ["a/*:*"], "deny: a/*:*"),
    ],
)
def test_repositories(allow, deny, expected):
    """A repository is refused only if no tag of it can be pulled."""
    assert policy(allow, deny).refuses_repository("a/b") == expected


@pytest.mark.parametrize(
    ("allow", "deny", "expected"),
    [
        ([], [], False),
        (["a/*"], ["b/*:latest"], False),
        (["a/*:1"], [], True),
        ([], ["*:latest"], True),
    ],
)
def test_when_tags_matter(allow, deny, expected):
    """Tags are looked up only where a rule that covers the repository has a tag part."""
    assert policy(allow, deny).looks_at_tags("a/b") is expected


RULES = st.lists(st.sampled_from(["a/*", "a/b", "*", "b/*", "a/*:1", "*:2", "a/b:[12]", "b/*:1", "a/*:*"]), max_size=3)
TAGS = st.lists(st.sampled_from(["1", "2", "3"]), unique=True, max_size=3)


@given(RULES, RULES, TAGS)
def test_digests_and_tags_agree(allow, deny, names):
    """A digest may be pulled exactly if one of its known tags may; where tags do not matter they change nothing."""
    one, known = policy(allow, deny), tags(*names)
    if known:
        may = any(one.refuses_tag("a/b", tag) is None for tag in known)
        assert (one.refuses_digest("a/b", known) is None) == may
    if not one.looks_at_tags("a/b"):
        assert one.refuses_digest("a/b", known) == one.refuses_digest("a/b", [])
    if one.refuses_repository("a/b") is not None:
        assert all(one.refuses_tag("a/b", tag) is not None for tag in tags("1", "2", "3"))


HEX = "a" * 64


def test_digest_rules():
    """A rule of deny with a digest is apart from the others, whatever stands before the digest."""
    one = Policy.parse(["library/*"], ["evil/*", f"nginx:1.27@sha256:{HEX}", f"*/*@sha256:{HEX}"], "docker.io")
    assert one.deny == (PathPattern.parse("evil/*", "docker.io"),)
    assert [rule.digest for rule in one.digests] == [Digest.parse(f"sha256:{HEX}")] * 2
    assert [str(rule) for rule in one.digests] == [f"nginx:1.27@sha256:{HEX}", f"*/*@sha256:{HEX}"]
    assert one.refuses_tag("library/nginx", Tag("1.27")) is None


@pytest.mark.parametrize("text", ["nginx@sha256:*", "nginx@", f"@sha256:{HEX}", f"NGINX@sha256:{HEX}", f"a@b@sha256:{HEX}"])
def test_digest_rules_that_are_none(text):
    """A digest has to be a whole one, and what stands before it a name."""
    with pytest.raises(InvalidInput):
        Policy.parse([], [text], "docker.io")


def test_allow_takes_no_digest():
    """What may be pulled is said by names."""
    with pytest.raises(InvalidInput):
        Policy.parse([f"nginx@sha256:{HEX}"], [], "docker.io")
