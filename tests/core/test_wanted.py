"""An entry of the list of images to keep means one image, or exactly the tags that its words choose."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.core.digest import Digest
from mirror.core.errors import InvalidDigest, InvalidImageSelector, InvalidInput, InvalidName, InvalidRegistry, InvalidTag
from mirror.core.image_selector import ImageSelector
from mirror.core.names import Repository, Tag
from mirror.core.platform import Platform
from mirror.core.versions import VersionRange

from .strategies import digests, paths, registries, tags

DIGEST = Digest.of(b"x")
NGINX = Repository("docker.io", "library/nginx")
TAGS = (
    *("latest", "mainline", "stable", "alpine", "1", "1.9", "1.26", "1.26.3", "1.27", "1.27.0", "1.27.4", "1.28.0", "2", "v1.30"),
    *("1.28.0-rc1", "1.28.0rc2", "1.9-alpine", "1.27-alpine", "1.27.4-alpine", "1.27.4-alpine-slim", "1.28.0-alpine"),
)


def select(text, versions=None, newest=None):
    wanted = ImageSelector.parse(text, versions=None if versions is None else VersionRange.parse(versions), newest=newest)
    return " ".join(map(str, wanted.select(TAGS)))


@pytest.mark.parametrize(
    ("text", "repository", "reference", "pattern"),
    [
        ("nginx", NGINX, Tag("latest"), None),
        ("nginx:1.27", NGINX, Tag("1.27"), None),
        ("index.docker.io/library/nginx:1.27", NGINX, Tag("1.27"), None),
        (f"nginx@{DIGEST}", NGINX, DIGEST, None),
        (f"nginx:1.27@{DIGEST}", NGINX, DIGEST, None),
        ("nginx:1.27.*", NGINX, None, "1.27.*"),
        ("nginx:[0-9]?", NGINX, None, "[0-9]?"),
        ("GHCR.io/owner/app:v*", Repository("ghcr.io", "owner/app"), None, "v*"),
        ("[::1]:5000/app:1", Repository("[::1]:5000", "app"), Tag("1"), None),
        ("[::1]:5000/app:1.*", Repository("[::1]:5000", "app"), None, "1.*"),
    ],
)
def test_entries(text, repository, reference, pattern):
    """A tag, a digest, a glob over tags and Docker's short names are understood."""
    wanted = ImageSelector.parse(text)
    assert (wanted.repository, wanted.reference, wanted.pattern) == (repository, reference, pattern)


def test_what_goes_with_an_entry():
    """Range, number and platforms are kept; without a tag they choose among all tags."""
    versions, platform = VersionRange.parse(">=1"), Platform("linux", "arm64")
    wanted = ImageSelector.parse("app", "quay.io", versions, 3, [platform])
    assert wanted == ImageSelector(Repository("quay.io", "app"), None, "*", versions, 3, (platform,))


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", InvalidName),
        ("nginx:", InvalidTag),
        ("nginx:a b", InvalidTag),
        ("nginx: *", InvalidTag),
        ("nginx@sha256:abc", InvalidDigest),
        ("nginx@sha256:*", InvalidDigest),
        ("Nginx", InvalidName),
        ("a..b/x:1", InvalidRegistry),
        ("https://ghcr.io/x", InvalidRegistry),
        ("nginx >=1.25", InvalidName),
        ("x" * 600, InvalidName),
    ],
)
def test_mistakes(text, error):
    """A bad part raises the error of that part."""
    with pytest.raises(error):
        ImageSelector.parse(text)


@pytest.mark.parametrize("text", ["library/*", "ngin?:1", "*/nginx:1", "*.io/library/nginx", "quay.io/*/x", "*", f"*@{DIGEST}"])
def test_a_registry_cannot_be_asked_for_its_repositories(text):
    """A glob anywhere but in the tag is refused, and the message says why."""
    with pytest.raises(InvalidImageSelector, match="cannot be asked for its repositories"):
        ImageSelector.parse(text)


@pytest.mark.parametrize("text", ["nginx:1.27", f"nginx@{DIGEST}", f"nginx:*@{DIGEST}"])
@pytest.mark.parametrize("choice", [{"newest": 1}, {"versions": VersionRange.parse("*")}])
def test_nothing_to_choose_from(text, choice):
    """A range or a number with one tag or digest is a mistake."""
    with pytest.raises(InvalidImageSelector, match="versions and newest choose among tags"):
        ImageSelector.parse(text, **choice)


@pytest.mark.parametrize("newest", [0, -1, ImageSelector.MAX_TAGS + 1])
def test_newest_has_bounds(newest):
    """None at all, or more than are ever kept of an entry, is a mistake."""
    with pytest.raises(InvalidImageSelector, match="newest has to be from 1 to"):
        ImageSelector.parse("nginx", newest=newest)


@pytest.mark.parametrize(
    ("text", "versions", "newest", "expected"),
    [
        ("nginx:*in*", None, None, "1.28.0-alpine 1.27.4-alpine-slim 1.27.4-alpine 1.27-alpine 1.9-alpine alpine mainline"),
        ("nginx:1.27*", None, None, "1.27.4 1.27.4-alpine-slim 1.27.4-alpine 1.27.0 1.27 1.27-alpine"),
        ("nginx:1.27*", None, 2, "1.27.4 1.27.0"),
        ("nginx:1.27*", "<1.27.4", None, "1.27.0 1.27"),
        ("nginx", None, 3, "2 v1.30 1.28.0"),
        ("nginx", "*", None, "2 v1.30 1.28.0 1.27.4 1.27.0 1.27 1.26.3 1.26 1.9 1"),
        ("nginx", ">=1.25 <2", None, "v1.30 1.28.0 1.27.4 1.27.0 1.27 1.26.3 1.26"),
        ("nginx:1.*.*", ">=1.25 <2", 2, "1.28.0 1.27.4"),
        ("nginx:*-alpine", None, 2, "1.28.0-alpine 1.27.4-alpine"),
        ("nginx:*-alpine", "~1.27", None, "1.27.4-alpine 1.27-alpine"),
        ("nginx:[0-9]*", None, 1, "2"),
        ("nginx:1.28[!0-9]*", None, 5, "1.28.0"),
        ("nginx:1.28*-rc*", None, 5, "1.28.0-rc1"),
        ("nginx:latest", None, None, ""),
        ("nginx:3.*", None, None, ""),
        ("nginx:*", ">=7", 3, ""),
    ],
)
def test_selection(text, versions, newest, expected):
    """Globs, ranges and numbers choose these tags; prereleases and variants only where the glob asks for them."""
    assert select(text, versions, newest) == expected


@given(st.lists(st.text(max_size=8) | tags, max_size=20), st.none() | st.integers(1, 5))
def test_arbitrary_lists(names, newest):
    """Whatever a registry says its tags are, only tags of its list come out, each once, in an order that is not the list's."""
    wanted = ImageSelector.parse("app:*", newest=newest)
    chosen = wanted.select(names)
    assert {tag.value for tag in chosen} <= set(names)
    assert len(set(chosen)) == len(chosen) <= (newest or len(names))
    assert wanted.select(reversed(names)) == chosen


def test_selection_is_bounded():
    """A repository with very many tags does not take the store over; the highest versions stay."""
    names = [f"1.{number}" for number in range(3 * ImageSelector.MAX_TAGS)] + ["edge"]
    chosen = ImageSelector.parse("app:*").select(names)
    assert len(chosen) == ImageSelector.MAX_TAGS
    assert chosen[0] == Tag(f"1.{3 * ImageSelector.MAX_TAGS - 1}")


@given(registries, paths, tags | digests)
def test_round_trip(registry, path, reference):
    """An entry for one image written as text reads back as itself."""
    sign = "@" if isinstance(reference, Digest) else ":"
    wanted = ImageSelector.parse(f"{registry}/{path}{sign}{reference}")
    assert ImageSelector.parse(str(wanted)) == wanted


@given(st.text(max_size=30) | st.text(alphabet="a.:/@[]*-1", max_size=30))
def test_arbitrary_text_is_an_entry_or_invalid(text):
    """No text at all makes the parser raise anything but InvalidInput."""
    try:
        ImageSelector.parse(text)
    except InvalidInput:
        return
