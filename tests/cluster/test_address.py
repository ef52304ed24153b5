"""The name of a node: the URL by which others reach it."""

import pytest

from mirror.cluster.address import advertised
from mirror.config.cluster import ClusterConfig, Redis


def config(listen="0.0.0.0:5002", **settings):
    return ClusterConfig(listen=listen, **settings)


@pytest.fixture(autouse=True)
def _no_pod(monkeypatch):
    monkeypatch.delenv("POD_IP", raising=False)


def test_configured_url_wins(monkeypatch):
    monkeypatch.setenv("POD_IP", "10.9.9.9")
    assert advertised(config(advertise="https://node-1.example:5002/")) == "https://node-1.example:5002"


def test_pod(monkeypatch):
    monkeypatch.setenv("POD_IP", "10.9.9.9")
    assert advertised(config()) == "http://10.9.9.9:5002"


def test_pod_with_ipv6(monkeypatch):
    monkeypatch.setenv("POD_IP", "fd00::1")
    assert advertised(config()) == "http://[fd00::1]:5002"


def test_listening_address():
    assert advertised(config("127.0.0.1:5010")) == "http://127.0.0.1:5010"


def test_every_interface_is_no_name(tmp_path):
    """Redis on this host, or a name that does not resolve, gives the address of the route to elsewhere."""
    secret = tmp_path / "secret"
    secret.write_text("s" * 32)
    for host in ("127.0.0.1", "nowhere.invalid"):
        name = advertised(config(redis=Redis(url=f"redis://{host}"), secret_file=secret))
        assert name.startswith("http://")
        assert "0.0.0.0" not in name
