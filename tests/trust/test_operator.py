"""What the operator sees of signatures: mistakes in the configuration, `explain`, the resync."""

import asyncio

import pytest

from mirror.config.model import Config
from mirror.errors import ConfigurationError
from tests.mirror.syncing import Orders
from tests.support.names import APP, TAG, manifest_path
from tests.trust.signing import Key, sig_tag, sign
from tests.trust.sigstore_instance import Sigstore
from tests.trust.test_pulls import signed_alone, signed_by_index, unsigned, wrong_key


async def explain(mirror, image):
    url = f"http://127.0.0.1:{mirror.admin_port}/api/v1/explain"
    async with mirror.session.get(url, params={"image": image}) as response:
        assert response.status == 200
        return await response.json()


async def test_explain(hub, mirror, key):
    """`explain` says the verdict and why, and what a pull would be answered; it judges nothing itself."""
    image = signed_by_index(hub, key)
    found = await explain(mirror, "app:1")
    assert found["trust"] == {"rule": "trust: library/*", "mode": "enforce", "result": None, "why": None, "reached": None}
    await mirror.get(TAG)
    found = await explain(mirror, "app:1")
    assert (found["trust"]["result"], found["trust"]["why"]) == ("signed", "by key key.pub")
    child = next(iter(image.children.values()))
    found = await explain(mirror, f"app@{child.digest}")
    assert found["trust"]["result"] == "signed"
    assert image.digest in found["trust"]["why"]
    assert (await explain(mirror, f"app:{sig_tag(image.digest)}"))["trust"] is None
    assert (await explain(mirror, "other/app:1"))["trust"] is None


async def test_status_page(hub, mirror, key):
    """The page of an image says the verdict, too."""
    signed_by_index(hub, key)
    url = f"http://127.0.0.1:{mirror.admin_port}/image"
    for verdict in ("not judged yet", "signed: by key key.pub"):
        async with mirror.session.get(url, params={"name": "app:1"}, headers={"Accept-Encoding": "identity"}) as response:
            assert verdict in await response.text()
        await mirror.get(TAG)


async def test_explain_a_refusal(hub, mirror, key):
    """The forecast of a refused image is the refusal."""
    wrong_key(hub, key)
    await mirror.get(TAG)
    found = await explain(mirror, "app:1")
    assert found["trust"]["result"] == "wrong"
    assert found["pull"]["action"] == "refuse"
    assert "none of the rule's keys" in found["pull"]["why"]


async def test_resync_keeps_to_it(hub, mirror, key, clock):
    """The resync fetches nothing that is not signed, leaves the tag, says so, and follows once it is signed."""
    orders = Orders(mirror)
    old = signed_alone(hub, key)
    await mirror.get(TAG)
    new = hub.add_image(APP, "1", layers=[b"new"])
    clock.advance(61)
    summary = await orders.sync("app:1")
    assert summary["tags"] == {"untrusted": 1}
    assert await mirror.metric("sync_tags_total", result="untrusted") == 1
    assert not mirror.holds(new.layers[0].digest)
    assert (await mirror.get(TAG)).body == old.raw
    sign(hub, APP, new.digest, key)
    clock.advance(61)
    await orders.sync("app:1")
    assert (await mirror.get(TAG)).body == new.raw


@pytest.mark.parametrize("by_digest", [False, True])
async def test_warm_keeps_to_it(hub, mirror, key, by_digest):
    """`warm` fetches no layer of an image that is not signed, and reports it."""
    image = unsigned(hub, key)
    summary = await Orders(mirror).warm(f"app@{image.digest}" if by_digest else "app:1")
    assert summary["tags"] == {"untrusted": 1}
    assert "trust: library/*" in str(summary["problems"])
    assert not any(mirror.holds(layer.digest) for layer in image.layers)


async def test_export_keeps_to_it(hub, mirror, key):
    """An image that is not signed is not exported."""
    unsigned(hub, key)
    url = f"http://127.0.0.1:{mirror.admin_port}/api/v1/export"
    async with mirror.session.post(url, json={"images": ["app:1"]}) as response:
        assert response.status != 200
        assert "trust: library/*" in await response.text()


# ---- configuration


def mistakes(tmp_path, **entry):
    with pytest.raises((ConfigurationError, ValueError)) as caught:
        Config(registries={"docker.io": entry})
    error = caught.value
    if isinstance(error, ConfigurationError):
        return error.problems
    return [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (Key.ecdsa().pem[:-20], "it is cut off"),
        (Key.ecdsa().private_pem, "it is a private key"),
        (b"text", "it is not in PEM"),
    ],
)
def test_mistakes_in_key_files(tmp_path, content, reason):
    """A key file that cannot be used is a mistake that names key and file."""
    path = tmp_path / "release.pub"
    path.write_bytes(content)
    (line,) = mistakes(tmp_path, trust=[{"match": "*", "keys": [str(path)]}])
    assert line.startswith("registries.docker.io.trust.0.keys.0: ")
    assert str(path) in line
    assert reason in line


@pytest.mark.parametrize(
    ("rule", "key", "reason"),
    [
        ({"match": "*"}, "trust.0", "keys or identities are required"),
        ({"match": "*", "keys": ["/nowhere.pub"]}, "trust.0.keys.0", "cannot be read: /nowhere.pub"),
        ({"match": "a:1", "keys": []}, "trust.0.match", "must not name a tag"),
        ({"match": "*", "identities": [{"issuer": "x", "subject": "y"}]}, "trust.0.identities.0.issuer", "must be a URL"),
        ({"match": "*", "identities": [{"issuer": "https://x", "subject": ""}]}, "trust.0.identities.0.subject", ""),
        ({"match": "*", "identities": [{"issuer": "https://x"}]}, "trust.0.identities.0.subject", ""),
        ({"match": "*", "mode": "maybe", "identities": []}, "trust.0.mode", ""),
        ({"match": "*", "key": []}, "trust.0.key", ""),
    ],
)
def test_mistakes_in_rules(tmp_path, rule, key, reason):
    """Each mistake is named by its key."""
    lines = mistakes(tmp_path, trust=[rule])
    assert any(line.startswith(f"registries.docker.io.{key}: ") and reason in line for line in lines)


def test_mistakes_in_a_trust_root(tmp_path):
    """A trust root that is none is a mistake that names key and file."""
    path = tmp_path / "root.json"
    path.write_text("{}")
    (line,) = mistakes(tmp_path, trust_root=str(path))
    assert line.startswith("registries.docker.io.trust_root: ")
    assert str(path) in line


# ---- identities, and several processes


async def test_identity(hub, trusting, tmp_path):
    """An identity is enough, by the trust root in a file; another identity is refused."""
    from tests.trust.signing import payload, put_simple
    from tests.trust.sigstore_instance import ISSUER, SUBJECT

    sigstore = Sigstore()
    root = tmp_path / "root.json"
    root.write_text(sigstore.trust_root)
    image, other = hub.add_image(APP, "1"), hub.add_image(APP, "2")
    for each, subject in ((image, SUBJECT), (other, "https://github.example.com/evil")):
        signed = payload(each.digest)
        signature, annotations = sigstore.simple(sigstore.identity(subject), signed)
        put_simple(hub, APP, each.digest, (signed, signature, annotations))
    identities = [{"issuer": ISSUER, "subject": "https://github.example.com/org/*"}]
    async with trusting(registry={"trust_root": str(root)}, identities=identities) as mirror:
        assert (await mirror.get(TAG)).status == 200
        assert (await mirror.get(manifest_path("2"))).status == 403


async def test_two_mirrors_on_one_store(hub, trusting, key):
    """A verdict and what a manifest names are the same in all processes of a store: layers through another one than the index."""
    image = signed_by_index(hub, key)
    child = next(iter(image.children.values()))
    async with trusting() as one, trusting() as two:
        assert (await one.get(TAG)).status == 200
        assert (await two.get(manifest_path(child.digest))).status == 200
        answers = await asyncio.gather(*(each.get(f"/v2/{APP}/blobs/{child.config.digest}") for each in (one, two)))
        assert [answer.status for answer in answers] == [200, 200]
        assert await two.metric("trust_verdicts_total") == 0
