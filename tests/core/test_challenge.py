"""Challenges are read as RFC 9110 writes them, and credentials stay with whom they belong to."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.core.challenge import Challenge, parse_challenges, pull_scope, realm_allowed

HUB = (
    'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",'
    'scope="repository:library/nginx:pull,push",error="insufficient_scope"'
)
HUB_PARAMS = {
    "realm": "https://auth.docker.io/token",
    "service": "registry.docker.io",
    "scope": "repository:library/nginx:pull,push",
    "error": "insufficient_scope",
}

tokens = st.from_regex(r"\A[A-Za-z][A-Za-z0-9-]{0,8}\Z")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], []),
        ([""], []),
        ([HUB], [Challenge("bearer", HUB_PARAMS)]),
        (['BEARER  Realm = "x" , SERVICE=y'], [Challenge("bearer", {"realm": "x", "service": "y"})]),
        (["Basic"], [Challenge("basic")]),
        (['Basic realm=""'], [Challenge("basic", {"realm": ""})]),
        (["Negotiate, Basic realm=r"], [Challenge("negotiate"), Challenge("basic", {"realm": "r"})]),
        (
            ['Basic realm="a", Bearer realm="b", service="c"'],
            [Challenge("basic", {"realm": "a"}), Challenge("bearer", {"realm": "b", "service": "c"})],
        ),
        (
            ['Basic realm="a"', "Bearer realm=b"],
            [Challenge("basic", {"realm": "a"}), Challenge("bearer", {"realm": "b"})],
        ),
        (
            ["Negotiate YWJj==, Bearer realm=b"],
            [Challenge("negotiate", {}, "YWJj=="), Challenge("bearer", {"realm": "b"})],
        ),
        (
            ["Bearer realm=https://x.io/token?a=b,service=s"],
            [Challenge("bearer", {"realm": "https://x.io/token?a=b", "service": "s"})],
        ),
        ([r'Basic realm="say \"hi\", \\ ok"'], [Challenge("basic", {"realm": r'say "hi", \ ok'})]),
        (['Basic realm="a", realm="b"'], [Challenge("basic", {"realm": "a"})]),
        ([",, Basic realm=a ,,"], [Challenge("basic", {"realm": "a"})]),
        (['Basic realm="a" charset="UTF-8"'], [Challenge("basic", {"realm": "a", "charset": "UTF-8"})]),
        (['Bearer realm="x", =broken, service=y'], [Challenge("bearer", {"realm": "x", "service": "y"})]),
        (['Bearer realm="never closed'], [Challenge("bearer")]),
    ],
)
def test_challenges(values, expected):
    """Quoted commas and escapes, several challenges, several lines, and any case are understood."""
    assert parse_challenges(values) == expected


@given(
    st.lists(
        st.tuples(
            tokens,
            st.dictionaries(tokens.map(str.lower), st.text(alphabet='ab ,=\\":/', max_size=12), min_size=1, max_size=4),
        ),
        max_size=4,
    )
)
def test_round_trip(challenges):
    """Challenges written with quoted strings in one line are read back as they were."""
    line = ", ".join(
        scheme + " " + ", ".join(f'{name}="{_escaped(value)}"' for name, value in params.items()) for scheme, params in challenges
    )
    assert parse_challenges([line]) == [Challenge(scheme.lower(), params) for scheme, params in challenges]


def _escaped(value):
    return value.replace("\\", "\\\\").replace('"', '\\"')


@given(st.lists(st.text() | st.text(alphabet='Basic =",\\ \tx')))
def test_arbitrary_text(values):
    """No header makes the parser fail, and schemes and names come in lower case."""
    for challenge in parse_challenges(values):
        assert challenge.scheme == challenge.scheme.lower()
        assert all(name == name.lower() for name in challenge.params)


@pytest.mark.parametrize("text", ["a " * 8000, 'a="' * 5000, "a=" * 8000, "," * 16000, 'Basic a="' + "\\" * 16001])
def test_hostile_headers_are_not_slow(text):
    """A header of many kilobytes that makes no sense takes no time to speak of."""
    parse_challenges([text])


def test_pull_scope():
    """The scope names the repository and asks for pulling only."""
    assert pull_scope("library/nginx") == "repository:library/nginx:pull"


HUB_URL = "https://registry-1.docker.io"


@pytest.mark.parametrize(
    ("realm", "upstream", "token_hosts"),
    [
        ("https://auth.docker.io/token", HUB_URL, []),
        ("https://AUTH.docker.io/token", HUB_URL, []),
        ("https://ghcr.io/token", "https://ghcr.io", []),
        ("https://gitlab.com/jwt/auth", "https://registry.gitlab.com", []),
        ("https://docker-auth.elastic.co/auth", "https://docker.elastic.co", []),
        ("https://api.digitalocean.com/v2/registry/auth", "https://Registry.DigitalOcean.com", []),
        ("https://ghcr.io/token", "https://lscr.io", []),
        ("https://auth.docker.io/token", "https://index.docker.io", []),
        ("https://login.example.com/t", "https://registry.example.org", ["login.example.com"]),
        ("https://login.example.com:8443/t", "https://registry.example.org", ["Login.example.com:8443"]),
        ("https://login.example.com:8443/t", "https://registry.example.org", ["login.example.com"]),
        ("https://10.0.0.1:5001/t", "https://10.0.0.1:5000", []),
        ("http://127.0.0.1:5001/t", "http://127.0.0.1:5000", []),
        ("http://localhost/t", "http://localhost:5000", []),
        ("https://localhost/t", "http://localhost:5000", []),
        ("https://[::1]:1/t", "https://[::1]:2", []),
        ("https://x.azurecr.io/oauth2/token", "https://x.azurecr.io", []),
        ("https://www.example.co.uk/t", "https://www.example.co.uk", []),
    ],
)
def test_allowed_realms(realm, upstream, token_hosts):
    """Credentials may go to the upstream's host, to the token host of a well-known registry, and to configured hosts."""
    assert realm_allowed(realm, upstream, token_hosts)


@pytest.mark.parametrize(
    ("realm", "upstream", "token_hosts"),
    [
        ("https://evil.example/token", HUB_URL, []),
        ("https://auth.docker.io.evil.example/token", HUB_URL, []),
        ("https://evildocker.io/token", HUB_URL, []),
        ("http://auth.docker.io/token", HUB_URL, []),
        ("http://auth.docker.io/token", HUB_URL, ["auth.docker.io"]),
        ("https://hub.docker.io/token", HUB_URL, []),
        ("https://registry-1.docker.io/token", "https://auth.docker.io", []),
        ("https://auth.docker.io:8443/token", "https://registry.example.org", []),
        ("https://login.example.com/t", "https://registry.example.com", []),
        ("https://example.com/t", "https://registry.example.com", []),
        ("https://lscr.io/token", "https://ghcr.io", []),
        ("https://evil.azurecr.io/t", "https://x.azurecr.io", []),
        ("https://evil.s3.amazonaws.com/t", "https://x.dkr.ecr.eu-west-1.amazonaws.com", []),
        ("https://evil.co.uk/t", "https://registry.co.uk", []),
        ("https://evil.com.cn/t", "https://registry.com.cn", []),
        ("https://evil.github.io/t", "https://me.github.io", []),
        ("https://10.9.0.1/t", "https://10.8.0.1", []),
        ("https://1.2.0.1/t", "https://3.4.0.1", []),
        ("https://1.0x7f.0x1/t", "https://2.0x7f.0x1", []),
        ("https://[::2]/t", "https://[::1]", []),
        ("https://other/t", "https://registry", []),
        ("https://auth.docker.io@evil.example/t", HUB_URL, []),
        ("https://user:pw@auth.docker.io/t", HUB_URL, []),
        ("https://evil.example\\@auth.docker.io/t", HUB_URL, []),
        ("https://evil.example\\.docker.io/t", HUB_URL, []),
        ("https:///auth.docker.io/t", HUB_URL, []),
        ("//auth.docker.io/t", HUB_URL, []),
        ("/token", HUB_URL, []),
        ("", HUB_URL, []),
        ("ftp://auth.docker.io/t", "http://registry.docker.io", []),
        ("file:///etc/passwd", "http://localhost", []),
        ("https://auth.docker.io\n.evil.example/t", HUB_URL, []),
        ("https://auth.docker.io:99999/t", HUB_URL, []),
        ("https://[::1/t", "https://[::1]", []),
        ("https://auth\u3002docker\u3002io/t", HUB_URL, []),
        ("https://login.example.com:1/t", "https://registry.example.org", ["login.example.com:8443"]),
        ("https://a.login.example.com/t", "https://registry.example.org", ["login.example.com"]),
        ("https://auth.docker\n.io/t", HUB_URL, []),
        (" https://auth.docker.io/t", HUB_URL, []),
        ("https://..docker.io/t", "https://registry.docker.io", []),
    ],
)
def test_refused_realms(realm, upstream, token_hosts):
    """Foreign hosts, other hosts of one domain, plain http, and ambiguous URLs are refused."""
    assert not realm_allowed(realm, upstream, token_hosts)


@given(st.text() | st.text(alphabet="htps:/.@[]\\evl docker.io").map("https://".__add__), st.text())
def test_arbitrary_urls(realm, upstream):
    """No text makes the decision fail, and nothing that is not a URL is allowed."""
    assert realm_allowed(realm, upstream, []) <= realm.lower().startswith(("http://", "https://"))
