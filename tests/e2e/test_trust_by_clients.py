"""Images that OpenSSL has signed, pulled by the real dockerd and skopeo through a mirror that serves only what is signed."""

import base64
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.harness.dockerd import Dockerd
from tests.e2e.harness.images import (
    DOCKER,
    HOST_ARCHITECTURE,
    OCI,
    Content,
    Image,
    Index,
    build_image,
    build_index,
    layer_of_noise,
)
from tests.e2e.harness.mirror import Mirror, start_mirror
from tests.e2e.harness.process import client_environment, succeed
from tests.e2e.harness.skopeo import CopyError, Skopeo
from tests.e2e.harness.upstream import Upstream

pytestmark = pytest.mark.e2e

REPOSITORY = "library/trusted"
SIMPLE_SIGNING = "application/vnd.dev.cosign.simplesigning.v1+json"


class Signer:
    """A key of OpenSSL's, and what it signs, stored as cosign stores it (sigstore/cosign, specs/SIGNATURE_SPEC.md)."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True)
        self._directory = directory
        self._private, self.public = directory / "release.key", directory / "release.pub"
        self._openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", str(self._private))
        self._openssl("pkey", "-in", str(self._private), "-pubout", "-out", str(self.public))

    def sign(self, upstream: Upstream, item: Index, repository: str = REPOSITORY) -> None:
        """Sign an index in the upstream, as one of a repository of docker.io."""
        identity = {"docker-reference": f"docker.io/{repository}"}
        critical = {"identity": identity, "image": {"docker-manifest-digest": item.manifest.digest}}
        text = json.dumps({"critical": {**critical, "type": "cosign container image signature"}, "optional": None})
        payload = Content(SIMPLE_SIGNING, text.encode())
        (self._directory / "payload").write_bytes(payload.data)
        signature = self._openssl("dgst", "-sha256", "-sign", str(self._private), str(self._directory / "payload"))
        config = Content(OCI.config, b'{"architecture":"","os":"","rootfs":{"type":"layers","diff_ids":[]}}')
        annotations = {"dev.cosignproject.cosign/signature": base64.b64encode(signature).decode()}
        layer = {**payload.descriptor(), "annotations": annotations}
        document = {"schemaVersion": 2, "mediaType": OCI.manifest, "config": config.descriptor(), "layers": [layer]}
        manifest = Content(OCI.manifest, json.dumps(document).encode())
        tag = f"{item.manifest.digest.replace(':', '-')}.sig"
        upstream.push(Image(manifest, config, (payload,), HOST_ARCHITECTURE), REPOSITORY, tag)

    def _openssl(self, *arguments: str) -> bytes:
        return succeed(["openssl", *arguments], client_environment(self._directory / "home"))


@pytest.fixture(scope="module")
def signer(directory: Path, numbers: Iterator[int]) -> Signer:
    """Who signs, with the key that the mirror trusts."""
    return Signer(directory / f"signer-{next(numbers)}")


@pytest.fixture(scope="module")
def mirror(directory: Path, numbers: Iterator[int], upstream: Upstream, signer: Signer) -> Iterator[Mirror]:
    """A mirror of two workers that repeats each check at each pull, and serves only what the key has signed."""
    rule = {"match": "library/trusted", "keys": [str(signer.public)]}
    registries = {"docker.io": {"upstreams": [upstream.url], "trust": [rule]}}
    sections = {"registries": registries, "sync": {"interval": "0"}, "tags": {"ttl": "0s", "not_found_ttl": "0s"}}
    started = start_mirror(directory / f"mirror-{next(numbers)}", [], sections=sections, workers=2)
    try:
        yield started
    finally:
        started.close()


def image(seed: int) -> Index:
    return build_index(DOCKER, [build_image(DOCKER, HOST_ARCHITECTURE, [layer_of_noise(1 << 20, seed)])])


def test_only_what_is_signed(
    directory: Path, numbers: Iterator[int], mirror: Mirror, dockerd: Dockerd, upstream: Upstream, signer: Signer
) -> None:
    """A signed image is pulled; an unsigned one, one that another key or another name has signed, and its digests are not."""
    skopeo = Skopeo(directory / f"skopeo-{next(numbers)}", mirror.port)
    signed, unsigned, foreign, misnamed = map(image, range(4))
    for tag, each in (("signed", signed), ("unsigned", unsigned), ("foreign", foreign), ("misnamed", misnamed)):
        upstream.push(each, REPOSITORY, tag)
    signer.sign(upstream, signed)
    signer.sign(upstream, misnamed, "library/other")
    Signer(directory / f"signer-{next(numbers)}").sign(upstream, foreign)
    name = f"127.0.0.1:{mirror.port}/{REPOSITORY}"

    dockerd.pull("trusted", "signed")
    skopeo.copy(f"{name}:signed")

    assert dockerd.inspect("trusted:signed").image_id == signed.for_host().config.digest
    for tag, each, why in (
        ("unsigned", unsigned, "unsigned"),
        ("foreign", foreign, "none of the rule's keys"),
        ("misnamed", misnamed, "docker.io/library/other"),
    ):
        for reference in (f":{tag}", f"@{each.manifest.digest}", f"@{each.for_host().manifest.digest}"):
            with pytest.raises(CopyError, match="denied"):
                skopeo.copy(f"{name}{reference}")
        assert any(why in line for line in mirror.logged("trust_verdict"))


def test_a_tag_that_moves_to_something_unsigned(
    directory: Path, numbers: Iterator[int], mirror: Mirror, dockerd: Dockerd, upstream: Upstream, signer: Signer
) -> None:
    """dockerd and skopeo keep the old image, also after a crash and while upstream is down, until the new one is signed."""
    skopeo = Skopeo(directory / f"skopeo-{next(numbers)}", mirror.port)
    old, new = image(10), image(11)

    def pulled() -> tuple[str, str]:
        dockerd.remove_all()
        dockerd.pull("trusted", "1")
        manifest = skopeo.raw_manifest(f"docker.io/{REPOSITORY}:1")
        return dockerd.inspect("trusted:1").image_id, f"sha256:{hashlib.sha256(manifest).hexdigest()}"

    kept, followed = ((each.for_host().config.digest, each.manifest.digest) for each in (old, new))
    upstream.push(old, REPOSITORY, "1")
    signer.sign(upstream, old)
    assert pulled() == kept
    upstream.push(new, REPOSITORY, "1")
    assert pulled() == kept
    mirror.crash()
    mirror.start()
    with upstream.down():
        assert pulled() == kept

    signer.sign(upstream, new)

    assert pulled() == followed
    mirror.check_log()
