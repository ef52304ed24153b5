"""The printed configuration is what each client parses, and names every registry of the mirror."""

import json
import tomllib

import pytest
import yaml

from mirror.core.client_setup import CLIENTS, Mirror, MirroredRegistry, MirrorUrl, client_setup
from mirror.core.errors import InvalidUrl

HUB = MirroredRegistry.of("docker.io", ["https://mirror.gcr.io"], is_default=True)
GITHUB = MirroredRegistry.of("ghcr.io", ["https://ghcr.io"], is_default=False)
OWN = MirroredRegistry.of("registry.test:5000", ["http://other", "http://registry.test:5000"], is_default=False)


def setup(client, *registries, url="http://mirror.test:5000", ca=None):
    return client_setup(client, Mirror(MirrorUrl.parse(url), registries or (HUB,), ca))


def contents(made):
    return {file.path: file.text for file in made.files}


def test_docker():
    made = setup("docker", HUB, GITHUB)
    files = contents(made)
    assert json.loads(files["/etc/docker/daemon.json"]) == {"registry-mirrors": ["http://mirror.test:5000"]}
    hosts = tomllib.loads(files["/etc/docker/certs.d/ghcr.io/hosts.toml"])
    assert hosts["server"] == "https://ghcr.io"
    assert any("ghcr.io: only Docker 29" in note for note in made.notes)
    assert made.commands == ("systemctl reload docker",)


def test_docker_where_another_registry_is_the_default():
    """Docker names no registry, so the path does."""
    hub = MirroredRegistry.of("docker.io", [], is_default=False)
    made = setup("docker", hub)
    assert json.loads(contents(made)["/etc/docker/daemon.json"]) == {"registry-mirrors": ["http://mirror.test:5000/docker.io"]}
    assert any("Docker 24" in note for note in made.notes)


def test_docker_without_docker_hub():
    assert list(contents(setup("docker", GITHUB))) == ["/etc/docker/certs.d/ghcr.io/hosts.toml"]


def test_containerd():
    """Each registry has its own directory; behind the mirror stands the registry itself, never a configured upstream of it."""
    made = setup("containerd", HUB, GITHUB, OWN, url="https://mirror.test/path", ca="/etc/ca.pem")
    hosts = {path.split("/")[-2]: tomllib.loads(text) for path, text in contents(made).items()}
    assert {name: table["server"] for name, table in hosts.items()} == {
        "docker.io": "https://registry-1.docker.io", "ghcr.io": "https://ghcr.io", "registry.test:5000": "http://registry.test:5000",
    }  # fmt: skip
    (host,) = hosts["docker.io"]["host"].items()
    assert host == ("https://mirror.test/path", {"capabilities": ["pull", "resolve"], "ca": "/etc/ca.pem"})
    table = tomllib.loads(made.by_hand[0].text)
    assert table["plugins"]["io.containerd.cri.v1.images"]["registry"]["config_path"] == "/etc/containerd/certs.d"


@pytest.mark.parametrize("client", ["podman", "crio"])
def test_containers_image(client):
    """Plain http is marked insecure, and all but the default registry stand in the path."""
    (text,) = contents(setup(client, HUB, GITHUB, OWN)).values()
    hub, github, own = tomllib.loads(text)["registry"]
    assert hub["mirror"] == [{"location": "mirror.test:5000", "insecure": True}]
    assert github["mirror"] == [{"location": "mirror.test:5000/ghcr.io", "insecure": True}]
    assert (github["prefix"], github["location"], "insecure" in github) == ("ghcr.io", "ghcr.io", False)
    assert own["insecure"] is True
    secure = setup(client, url="https://mirror.test", ca="/etc/ca.pem")
    (text,) = contents(secure).values()
    assert tomllib.loads(text)["registry"][0]["mirror"] == [{"location": "mirror.test"}]
    assert "install -D -m 644 /etc/ca.pem /etc/containers/certs.d/mirror.test/ca.crt" in secure.commands


def test_buildkit():
    """The kind of connection stands in the table of the mirror's host, not of the registry."""
    (text,) = contents(setup("buildkit", HUB, GITHUB)).values()
    registry = tomllib.loads(text)["registry"]
    assert registry["docker.io"] == registry["ghcr.io"] == {"mirrors": ["mirror.test:5000"]}
    assert registry["mirror.test:5000"] == {"http": True}
    (text,) = contents(setup("buildkit", url="https://mirror.test/p", ca="/etc/ca.pem")).values()
    registry = tomllib.loads(text)["registry"]
    assert (registry["docker.io"]["mirrors"], registry["mirror.test"]) == (["mirror.test/p"], {"ca": ["/etc/ca.pem"]})
    assert any("network=host" in note for note in setup("buildkit", url="http://127.0.0.1:5000").notes)


def test_k3s():
    (text,) = contents(setup("k3s", HUB, OWN)).values()
    assert yaml.safe_load(text) == {
        "mirrors": {name: {"endpoint": ["http://mirror.test:5000"]} for name in ("docker.io", "registry.test:5000")}
    }
    (text,) = contents(setup("k3s", url="https://mirror.test/p", ca="/etc/ca.pem")).values()
    document = yaml.safe_load(text)
    assert document["mirrors"]["docker.io"]["endpoint"] == ["https://mirror.test/p/v2"]
    assert document["configs"] == {"mirror.test": {"tls": {"ca_file": "/etc/ca.pem"}}}


@pytest.mark.parametrize("client", ["podman", "crio", "buildkit"])
def test_a_path_after_v2_is_said(client):
    """These clients put the path of a mirror behind /v2, and others before it."""
    made = setup(client, url="https://mirror.test/p")
    assert any("/v2/p/" in note for note in made.notes)
    assert made.checks[0] == "curl -fsS https://mirror.test/p/v2/"


@pytest.mark.parametrize("client", CLIENTS)
def test_http_needs_no_certificates(client):
    made = setup(client, ca="/etc/ca.pem")
    assert "ca.pem" not in repr(made)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("http://mirror.test:5000/", "http://mirror.test:5000"),
        ("https://Mirror.test/v2/", "https://mirror.test"),
        ("http://[::1]:5000", "http://[::1]:5000"),
        ("http://mirror.test/a/b", "http://mirror.test/a/b"),
    ],
)
def test_urls(text, read):
    assert str(MirrorUrl.parse(text)) == read


@pytest.mark.parametrize(
    "text",
    [
        "",
        "mirror.test:5000",
        "ftp://mirror.test",
        "http://",
        "http://u:p@mirror.test",
        "http://m?q",
        "http://m#f",
        "http://m:x",
        'http://m"x',
        "http://m/a b",
    ],
)
def test_urls_that_clients_refuse(text):
    with pytest.raises(InvalidUrl):
        MirrorUrl.parse(text)
