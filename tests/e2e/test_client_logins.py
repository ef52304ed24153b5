"""Real clients before a mirror that wants to know who they are, and anonymous ones beside them."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.e2e.harness.client import get_manifest, request
from tests.e2e.harness.dockerd import Dockerd
from tests.e2e.harness.mirror import Mirror, start_mirror
from tests.e2e.harness.process import client_environment, run, succeed
from tests.e2e.harness.samples import Samples
from tests.e2e.harness.skopeo import CopyError, Skopeo
from tests.e2e.harness.upstream import Upstream
from tests.support.certificates import Authority

pytestmark = pytest.mark.e2e

USER, PASSWORD = "alice", "correct-horse"


@pytest.fixture(scope="module")
def htpasswd(directory: Path, numbers: Iterator[int]) -> Path:
    """A file of users as Apache's tool writes it."""
    path = directory / f"htpasswd-{next(numbers)}"
    hashed = succeed(["htpasswd", "-nbBC", "5", USER, PASSWORD], client_environment(directory / "home"))
    path.write_bytes(hashed)
    return path


@pytest.fixture(scope="module")
def login(directory: Path, numbers: Iterator[int], upstream: Upstream, htpasswd: Path) -> Iterator[Mirror]:
    """A mirror that serves only those who log in."""
    sections = {"access": {"htpasswd_file": str(htpasswd), "anonymous": False}, "log": {"level": "debug"}}
    started = start_mirror(directory / f"mirror-{next(numbers)}", [upstream.url], sections=sections)
    try:
        yield started
    finally:
        started.close()


@pytest.fixture(scope="module")
def mirror(directory: Path, numbers: Iterator[int], upstream: Upstream, htpasswd: Path) -> Iterator[Mirror]:
    """A mirror that knows users, and serves everybody."""
    sections: Mapping[str, object] = {"access": {"htpasswd_file": str(htpasswd)}}
    started = start_mirror(directory / f"mirror-{next(numbers)}", [upstream.url], sections=sections)
    try:
        yield started
    finally:
        started.close()


@pytest.fixture
def skopeo(directory: Path, numbers: Iterator[int]) -> Skopeo:
    """skopeo without mirrors of its own."""
    return Skopeo(directory / f"skopeo-{next(numbers)}")


def test_docker_login(dockerd: Dockerd, login: Mirror) -> None:
    """`docker login` succeeds with the right password and fails with a wrong one."""
    right = dockerd.login(f"127.0.0.1:{login.port}", USER, PASSWORD)
    assert right.returncode == 0, right.stderr
    assert b"Login Succeeded" in right.stdout

    wrong = dockerd.login(f"127.0.0.1:{login.port}", USER, "wrong")
    assert wrong.returncode != 0
    assert b"401" in wrong.stderr or b"unauthorized" in wrong.stderr.lower()


def test_docker_pulls_after_login(dockerd: Dockerd, login: Mirror, samples: Samples) -> None:
    """A daemon that has logged in pulls by the mirror's own name."""
    name = f"127.0.0.1:{login.port}/library/single"
    assert dockerd.login(f"127.0.0.1:{login.port}", USER, PASSWORD).returncode == 0

    pulled = dockerd.cli("pull", "-q", f"{name}:1")

    assert pulled.returncode == 0, pulled.stderr
    assert dockerd.inspect(f"{name}:1").image_id == samples.single.config.digest


def test_docker_as_anonymous_mirror_client(dockerd: Dockerd, mirror: Mirror, samples: Samples) -> None:
    """A daemon that has the mirror in `registry-mirrors` sends no credentials and is served."""
    dockerd.remove_all()

    dockerd.pull("single", "1")

    assert dockerd.inspect("single:1").image_id == samples.single.config.digest
    assert request("GET", f"{mirror.url}/v2/").headers.get("WWW-Authenticate") is None


@pytest.mark.parametrize("image", ["app:1", "single:1"])
def test_skopeo_with_credentials(image: str, skopeo: Skopeo, login: Mirror, mirror: Mirror, upstream: Upstream) -> None:
    """A copy with credentials has the same bytes as one from the upstream, from both mirrors."""
    expected = skopeo.copy(f"127.0.0.1:{upstream.port}/library/{image}")
    for one in (login, mirror):
        assert skopeo.copy(f"127.0.0.1:{one.port}/library/{image}", "--src-creds", f"{USER}:{PASSWORD}") == expected


def test_skopeo_with_wrong_or_no_credentials(skopeo: Skopeo, login: Mirror) -> None:
    """A copy without credentials, or with wrong ones, fails with the mirror's word."""
    for options in ([], ["--src-creds", f"{USER}:wrong"], ["--src-creds", f"bob:{PASSWORD}"]):
        with pytest.raises(CopyError, match=r"(?i)unauthorized|authentication required|invalid username/password|log in"):
            skopeo.copy(f"127.0.0.1:{login.port}/library/single:1", *options)


def test_no_password_in_the_log(login: Mirror, skopeo: Skopeo) -> None:
    """At the most talkative level, the log has neither the password nor the header that carries it."""
    skopeo.copy(f"127.0.0.1:{login.port}/library/single:1", "--src-creds", f"{USER}:{PASSWORD}")
    text = login.log_path.read_text()
    assert "serving" in text
    for secret in (PASSWORD, "YWxpY2U6", "Basic "):
        assert secret not in text


def test_networks(directory: Path, numbers: Iterator[int], upstream: Upstream, skopeo: Skopeo) -> None:
    """A client outside of `networks` is refused, and upstream hears nothing of it."""
    sections = {"access": {"networks": ["10.0.0.0/8"]}}
    closed = start_mirror(directory / f"mirror-{next(numbers)}", [upstream.url], sections=sections)
    position = len(upstream.asked())
    try:
        assert get_manifest(closed.url, "library/single", "1").status == 403
        with pytest.raises(CopyError):
            skopeo.copy(f"127.0.0.1:{closed.port}/library/single:1")
        assert len(upstream.asked()) == position
    finally:
        closed.close()


def test_tls_with_skopeo(directory: Path, numbers: Iterator[int], upstream: Upstream) -> None:
    """skopeo verifies the mirror's certificate, shows its own, and goes on with a renewed one without a restart."""
    place = directory / f"tls-{next(numbers)}"
    authority = Authority(place)
    first, second = authority.issue("first"), authority.issue("second")
    certificate, key = place / "served.pem", place / "served.key"
    certificate.write_bytes(first[0].read_bytes())
    key.write_bytes(first[1].read_bytes())
    trust, client = place / "trust", authority.issue("client")
    trust.mkdir()
    (trust / "ca.crt").write_bytes(authority.certificate.read_bytes())
    sections = {"tls": {"certificate": str(certificate), "key": str(key), "client_ca": str(authority.certificate)}}
    mirror = start_mirror(directory / f"mirror-{next(numbers)}", [upstream.url], sections=sections)
    try:
        skopeo = Skopeo(directory / f"skopeo-{next(numbers)}")
        plain = skopeo.copy(f"127.0.0.1:{upstream.port}/library/large:1")
        source = f"127.0.0.1:{mirror.port}/library/large:1"
        options = ["--src-cert-dir", str(trust), "--src-tls-verify=true"]
        with pytest.raises(CopyError):
            skopeo.copy(source, *options)
        (trust / "client.cert").write_bytes(client[0].read_bytes())
        (trust / "client.key").write_bytes(client[1].read_bytes())
        for _ in range(2):
            assert skopeo.copy(source, *options) == plain
        certificate.write_bytes(second[0].read_bytes())
        key.write_bytes(second[1].read_bytes())
        mirror.wait_logged("renewed_files_in_use", 15)
        assert _shown(mirror, directory) == "second"
        assert skopeo.copy(source, *options) == plain
    finally:
        mirror.close()


def _shown(mirror: Mirror, directory: Path) -> str:
    """The name in the certificate that the mirror shows."""
    argv = ["openssl", "s_client", "-connect", f"127.0.0.1:{mirror.port}", "-showcerts"]
    output = run(argv, client_environment(directory / "home"), 20).stdout.decode()
    return output.partition("subject=CN = ")[2].partition("\n")[0]
