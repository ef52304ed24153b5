"""The section `cluster`: each mistake names its key."""

import pytest

from mirror.config.model import load
from mirror.errors import ConfigurationError
from tests.support.certificates import Authority


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "secret"
    path.write_text("s" * 32)
    return path


def loaded(tmp_path, text):
    path = tmp_path / "mirror.yaml"
    path.write_text(text)
    return load(path).cluster


def test_absent_means_none(tmp_path):
    assert not loaded(tmp_path, "workers: 1").is_enabled


def test_minimal(tmp_path, secret):
    cluster = loaded(tmp_path, f"cluster: {{redis: {{url: 'redis://redis:6379/0'}}, secret_file: {secret}}}")
    assert cluster.is_enabled
    assert (cluster.name, cluster.fan_out, cluster.stall_timeout, cluster.redis.timeout) == ("default", 8, 3.0, 0.25)


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ("redis: {url: 'redis://redis'}", "cluster: secret_file is required"),
        ("redis: {url: 'http://redis'}", "cluster.redis.url"),
        ("redis: {url: 'redis://:secret@redis'}", "cluster.redis.url: must not contain a password"),
        ("redis: {url: 'redis://redis:99999'}", "cluster.redis.url"),
        ("redis: {url: 'redis://redis?socket_timeout=3'}", "cluster.redis.url: must not have a query"),
        ("redis: {url: 'redis://redis?password=secret'}", "cluster.redis.url: must not have a query"),
        ("redis: {url: 'unix:///redis.sock?db=1&password=secret'}", "cluster.redis.url: must not have a query"),
        ("redis: {timeout: 60s}", "cluster.redis.timeout"),
        ("advertise: 10.0.0.1:5002", "cluster.advertise"),
        ("advertise: 'http://10.0.0.1'", "cluster.advertise"),
        ("advertise: 'http://10.0.0.1:5002?zone=1'", "cluster.advertise"),
        ("advertise: 'http://10.0.0.1:5002#1'", "cluster.advertise"),
        ("name: 'a b'", "cluster.name"),
        ("fan_out: 0", "cluster.fan_out"),
        ("stall_timeout: 0s", "cluster.stall_timeout"),
        ("tls: {certificate: /dev/null}", "cluster.tls"),
        ("zone: 'a b'", "cluster.zone"),
    ],
)
def test_mistakes(section, key, tmp_path):
    with pytest.raises(ConfigurationError, match=key.replace(".", r"\.")) as caught:
        loaded(tmp_path, f"cluster: {{{section}}}")
    assert "secret@" not in str(caught.value)


def test_short_secret(tmp_path, secret):
    secret.write_text("s" * 32 + "\nshort\n")
    with pytest.raises(ConfigurationError, match=r"cluster\.secret_file: .*32 characters"):
        loaded(tmp_path, f"cluster: {{secret_file: {secret}}}")


def test_database_of_a_unix_socket(tmp_path, secret):
    url = "unix:///run/redis.sock?db=3"
    assert loaded(tmp_path, f"cluster: {{redis: {{url: '{url}'}}, secret_file: {secret}}}").redis.url == url


def test_plain_name_of_a_node_with_tls(tmp_path, secret):
    """Other nodes would speak plain HTTP to an address that speaks TLS."""
    authority = Authority(tmp_path)
    certificate, key = authority.issue("node")
    tls = f"{{certificate: {certificate}, key: {key}, ca: {authority.certificate}}}"
    with pytest.raises(ConfigurationError, match=r"cluster: advertise must begin with https://"):
        loaded(tmp_path, f"cluster: {{advertise: 'http://10.0.0.1:5002', tls: {tls}}}")
