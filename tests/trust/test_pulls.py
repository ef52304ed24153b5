"""Pulls from a repository with a rule of `trust`: what is signed is served, and nothing else."""

import gzip
import json

import pytest

from tests.fakehub import Rule, Status
from tests.fakehub.catalog import layer
from tests.support.clock import Clock
from tests.support.names import APP, TAG, blob_path, content, manifest_path
from tests.support.waiting import eventually
from tests.trust.signing import (
    BUNDLE,
    SIMPLE,
    Key,
    b64,
    key_bundle,
    payload,
    put_layers,
    put_simple,
    sig_tag,
    sign,
    sign_bundle,
    statement,
)

PLATFORMS = ["linux/amd64", "linux/arm64"]
OTHER = f"sha256:{'1' * 64}"


def paths(image):
    """Everything that a client pulls of an image, in its order."""
    child = next(iter(image.children.values()), image)
    return [TAG, manifest_path(image.digest), manifest_path(child.digest), *map(blob_path, (child.config, *child.layers))]


def signed_by_index(hub, key):
    image = hub.add_image(APP, "1", platforms=PLATFORMS)
    sign(hub, APP, image.digest, key)
    return image


def signed_alone(hub, key):
    image = hub.add_image(APP, "1")
    sign(hub, APP, image.digest, key)
    return image


def signed_by_bundle(hub, key):
    image = hub.add_image(APP, "1", platforms=PLATFORMS)
    sign_bundle(hub, APP, image.digest, key)
    return image


def signed_without_api(hub, key):
    """The registry has no referrers API, and lists the bundle under a tag."""
    image = hub.add_image(APP, "1")
    digest = sign_bundle(hub, APP, image.digest, key)
    entry = {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": 1, "artifactType": BUNDLE}
    index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [entry]}
    hub.add_manifest(APP, json.dumps(index).encode(), index["mediaType"], sig_tag(image.digest, ""))
    hub.referrers = False
    return image


def signed_among_others(hub, key):
    """The rule's signature is one of several."""
    image = hub.add_image(APP, "1")
    signed, stranger = payload(image.digest), Key.ecdsa()
    layers = [(signed, b64(signer.sign(signed))) for signer in (stranger, key, stranger)]
    put_simple(hub, APP, image.digest, *layers)
    return image


SIGNED = [signed_by_index, signed_alone, signed_by_bundle, signed_without_api, signed_among_others]


@pytest.mark.parametrize("made", SIGNED)
async def test_signed(hub, mirror, key, made):
    """All of a signed image is served, by HEAD and GET, cold and from the store."""
    image = made(hub, key)
    for path in paths(image) * 2:
        for method in ("HEAD", "GET"):
            answer = await mirror.get(path, method)
            assert (answer.status, path, method) == (200, path, method)
    assert await mirror.metric("trust_verdicts_total", registry="docker.io", result="signed") == 1


@pytest.mark.parametrize("made", SIGNED)
async def test_platform_manifest_and_layers_come_first(hub, trusting, key, made):
    """A client that has the index already pulls by digest only, also through a mirror that was restarted."""
    image = made(hub, key)
    async with trusting() as first:
        assert (await first.get(TAG)).status == 200
    async with trusting() as again:
        await hub.stop()
        assert (await again.get(manifest_path(image.digest))).status == 200
        await hub.start()
        await again.recovered()
        for path in reversed(paths(image)[2:]):
            if "blobs" not in path:
                assert (await again.get(path)).status == 200


def unsigned(hub, key):
    return hub.add_image(APP, "1", platforms=PLATFORMS)


def wrong_key(hub, key):
    image = hub.add_image(APP, "1", platforms=PLATFORMS)
    sign(hub, APP, image.digest, Key.ecdsa())
    return image


def copied(hub, key):
    """The signature of another image lies under the tag of this one."""
    image = hub.add_image(APP, "1", platforms=PLATFORMS)
    signed = payload(OTHER)
    put_simple(hub, APP, image.digest, (signed, b64(key.sign(signed))))
    return image


def other_repository(hub, key):
    image = hub.add_image(APP, "1", platforms=PLATFORMS)
    sign(hub, APP, image.digest, key, named="docker.io/library/other")
    return image


def damaged(hub, key):
    image = hub.add_image(APP, "1", platforms=PLATFORMS)
    signed = payload(image.digest)
    put_simple(hub, APP, image.digest, (signed + b" ", b64(key.sign(signed))))
    return image


def attested(hub, key):
    """An attestation by the rule's key is no signature."""
    image = hub.add_image(APP, "1", platforms=PLATFORMS)
    hub.add_referrer(APP, image.digest, BUNDLE, key_bundle(key, statement(image.digest, "https://slsa.dev/provenance/v1")))
    return image


def only_a_platform(hub, key):
    """The signature of one platform's manifest says nothing about the index that names it."""
    image = hub.add_image(APP, "1", platforms=PLATFORMS)
    sign(hub, APP, list(image.children.values())[1].digest, key)
    return image


REFUSED = {
    unsigned: "unsigned",
    wrong_key: "wrong",
    copied: "wrong",
    other_repository: "wrong",
    damaged: "wrong",
    attested: "unsigned",
    only_a_platform: "unsigned",
}


@pytest.mark.parametrize("made", REFUSED)
async def test_refused(hub, mirror, key, made):
    """Nothing of an image that is not signed is served: by tag or digest, by HEAD or GET, index, manifest or layer."""
    image = made(hub, key)
    for path in paths(image):
        for method in ("HEAD", "GET"):
            answer = await mirror.get(path, method)
            assert (answer.status, path, method) == (403, path, method)
        assert answer.code() == "DENIED"
        assert "trust: library/*" in answer.body.decode()
    assert REFUSED[made] in (await mirror.get(TAG)).body.decode()
    assert await mirror.metric("trust_verdicts_total", result=REFUSED[made]) >= 1


async def test_many_indexes_lead_to_a_manifest(hub, mirror, key, clock):
    """However many indexes lead to an unsigned manifest, few signatures are asked for; one that is signed lets it pass."""
    image, top = hub.add_image(APP, "1"), []
    level = [image.digest]
    for step in range(4):
        level = [add_index(hub, level, f"{step} {n}") for n in range(8)]
        top += level
    for digest in top:
        assert (await mirror.get(manifest_path(digest))).status == 403
    clock.advance(61)
    hub.reset_counters()
    assert (await mirror.get(manifest_path(image.digest))).status == 403
    assert 20 <= hub.count(kind="referrers") <= 21
    sign(hub, APP, top[-1], key)
    clock.advance(61)
    assert (await mirror.get(manifest_path(top[-1]))).status == 200
    assert (await mirror.get(manifest_path(image.digest))).status == 200


def add_index(hub, digests, name):
    """Put an index that names manifests."""
    entries = [{"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": str(one), "size": 1} for one in digests]
    kind = "application/vnd.oci.image.index.v1+json"
    index = {"schemaVersion": 2, "mediaType": kind, "manifests": entries, "annotations": {"name": name}}
    return hub.add_manifest(APP, json.dumps(index).encode(), kind, name.replace(" ", "-"))


@pytest.mark.parametrize("made", REFUSED)
async def test_refused_after_a_restart_in_an_outage(hub, trusting, key, made):
    """A verdict outlives a restart, and an outage does not change it, however long it lasts."""
    image = made(hub, key)
    async with trusting() as first:
        assert (await first.get(TAG)).status == 403
        assert (await first.get(manifest_path(image.digest))).status == 403
    await hub.stop()
    async with trusting(settings={"tags": {"not_found_ttl": "0"}}) as again:
        assert (await again.get(manifest_path(image.digest))).status == 403


async def test_signed_after_a_restart_in_an_outage(hub, trusting, key):
    """A signed image is served from the store while upstream is down, and no signature is asked for."""
    image = signed_by_index(hub, key)
    async with trusting() as first:
        for path in paths(image):
            assert (await first.get(path)).status == 200
        await first.idle()
    await hub.stop()
    async with trusting() as again:
        assert [(await again.get(path)).status for path in paths(image)] == [200] * 5
        assert await again.metric("trust_verdicts_total") == 0


async def test_no_verdict_in_an_outage(hub, mirror, key):
    """While the signatures cannot be fetched the answer is 503, nothing is remembered, and the next pull asks again."""
    image = signed_alone(hub, key)
    rules = [Rule(reference=sig_tag(image.digest), times=None), Rule(kind="referrers", times=None)]
    for rule in rules:
        hub.script(rule, Status(503))
    answer = await mirror.get(TAG)
    assert (answer.status, answer.code()) == (503, "UNAVAILABLE")
    assert "signatures" in answer.body.decode()
    assert await mirror.metric("trust_verdicts_total", result="unavailable") >= 1
    hub.clear_script()
    await eventually(lambda: mirror.get(TAG), holds=lambda answer: answer.status == 200)


async def test_lost_referrers_do_not_hide_a_signature(hub, mirror, key):
    """One way to find signatures is enough."""
    signed_alone(hub, key)
    hub.script(Rule(kind="referrers", times=None), Status(503))
    assert (await mirror.get(TAG)).status == 200


@pytest.mark.parametrize("status", [400, 401, 403, 405, 406, 501])
async def test_registry_that_refuses_the_referrers_api(hub, mirror, key, status):
    """Bundles are found under the fallback tag also where the path of the referrers API is not answered with 404."""
    image = signed_without_api(hub, key)
    hub.referrers = True
    hub.script(Rule(kind="referrers", times=None), Status(status))
    assert [(await mirror.get(path)).status for path in paths(image)] == [200] * 5


async def test_what_upstream_said_last_is_no_verdict(hub, trusting, key):
    """That upstream had no signatures before an outage does not say that there are none now."""
    image = hub.add_image(APP, "1")
    hub.referrers = False
    settings = {"tags": {"not_found_ttl": "0"}}
    async with trusting(match="other/*", settings=settings) as before:
        for path in paths(image):
            await before.get(path)
        for path in (f"/v2/{APP}/referrers/{image.digest}", *(manifest_path(sig_tag(image.digest, end)) for end in (".sig", ""))):
            assert (await before.get(path)).status == 404
        await before.idle()
    await hub.stop()
    async with trusting(settings=settings) as mirror:
        answer = await mirror.get(manifest_path(image.digest))
        assert (answer.status, answer.code()) == (503, "UNAVAILABLE")


@pytest.mark.parametrize("failures", [2, 1000])
async def test_parts_that_cannot_be_written(hub, mirror, key, monkeypatch, failures):
    """A manifest passes once what it names is written down, so that its blobs pass, too."""
    image, parts, left = signed_alone(hub, key), mirror.store.index.parts, [failures]
    put = parts.put

    def busy(repository, manifest, named):
        """Write nothing, as while another process keeps the table."""
        if str(manifest) == str(image.digest) and left[0]:
            left[0] -= 1
        else:
            put(repository, manifest, named)

    monkeypatch.setattr(parts, "put", busy)
    answer = await mirror.get(TAG)
    if failures > 2:
        assert (answer.status, answer.code()) == (503, "UNAVAILABLE")
        left[0] = 0
        assert (await mirror.get(TAG)).status == 200
    else:
        assert answer.status == 200
    mirror.store.generation.change()
    assert (await mirror.get(blob_path(image.layers[0]))).status == 200


async def test_signed_later(hub, mirror, key, clock):
    """An image that is signed after its push is served once its refusal is older than not_found_ttl."""
    image = unsigned(hub, key)
    assert (await mirror.get(TAG)).status == 403
    sign(hub, APP, image.digest, key)
    assert (await mirror.get(TAG)).status == 403
    clock.advance(61)
    assert (await mirror.get(TAG)).status == 200


async def test_a_cached_verdict_asks_nobody(hub, mirror, key, clock):
    """A signed image costs upstream nothing more than without a rule."""
    image = signed_by_index(hub, key)
    for path in paths(image):
        await mirror.get(path)
    clock.advance(61)
    hub.reset_counters()
    for path in paths(image):
        assert (await mirror.get(path)).status == 200
    assert hub.count() == hub.count(method="HEAD", kind="manifest") == 1


async def test_moved_to_unsigned(hub, mirror, key, clock):
    """A tag that moves to something unsigned stays where it was, and follows once that is signed."""
    old = signed_by_index(hub, key)
    for path in paths(old):
        await mirror.get(path)
    new = hub.add_image(APP, "1", layers=[b"new"])
    for _ in range(3):
        clock.advance(61)
        answer = await mirror.get(TAG)
        assert (answer.status, answer.body) == (200, old.raw)
        assert (await mirror.head(TAG)).headers["Docker-Content-Digest"] == old.digest
    assert (await mirror.get(manifest_path(new.digest))).status == 403
    sign(hub, APP, new.digest, key)
    clock.advance(61)
    assert (await mirror.get(TAG)).body == new.raw


async def test_end_of_a_cooldown_does_not_trust(hub, trusting, key, monkeypatch):
    """An unsigned image that has cooled down is not followed to, and its tag is checked once within the ttl as before."""
    rule = {"match": APP, "cooldown": "3d", "ttl": "1h"}
    async with trusting(registry={"tags": [rule]}) as mirror:
        clock = Clock(mirror, monkeypatch)
        old = signed_alone(hub, key)
        assert (await mirror.get(TAG)).sha256 == old.digest
        new = hub.add_image(APP, "1", layers=[b"unsigned"])
        clock.advance(3601)
        assert (await mirror.get(TAG)).sha256 == old.digest
        clock.advance(3 * 86400)
        assert (await mirror.get(TAG)).sha256 == old.digest
        # Not from memory.
        mirror.store.generation.change()
        hub.reset_counters()
        assert (await mirror.get(TAG)).sha256 == old.digest
        assert hub.count(reference="1") == 0
        sign(hub, APP, new.digest, key)
        clock.advance(3601)
        assert (await mirror.get(TAG)).sha256 == new.digest


async def test_moved_while_signatures_are_unavailable(hub, mirror, key, clock):
    """A tag that moves while no signature can be fetched serves the old image as STALE, and is asked for again."""
    old = signed_alone(hub, key)
    for path in paths(old):
        await mirror.get(path)
    new = hub.add_image(APP, "1", layers=[b"new"])
    sign(hub, APP, new.digest, key)
    hub.script(Rule(reference=sig_tag(new.digest), times=None), Status(503))
    clock.advance(61)
    answer = await mirror.get(TAG)
    assert (answer.status, answer.cache, answer.body) == (200, "STALE", old.raw)
    hub.clear_script()
    await eventually(lambda: mirror.get(TAG), holds=lambda answer: answer.body == new.raw)


async def test_moved_while_the_old_image_was_not_judged(hub, trusting, key, monkeypatch):
    """A rule that is new keeps a tag, too, if what the tag named before it is signed and what it names now is not."""
    old = signed_by_index(hub, key)
    async with trusting(match="other/*") as before:
        for path in paths(old):
            await before.get(path)
        await before.idle()
    hub.add_image(APP, "1", layers=[b"new"])
    async with trusting(settings={"tags": {"ttl": "0"}}) as mirror:
        answer = await mirror.get(TAG)
        assert (answer.status, answer.body) == (200, old.raw)


async def test_pull_limit(hub, mirror, key):
    """A pull limit that keeps the mirror from fetching signatures is said as one."""
    image = signed_alone(hub, key)
    hub.script(Rule(reference=sig_tag(image.digest), times=None), Status(429))
    answer = await mirror.get(TAG)
    assert (answer.status, answer.code()) == (503, "TOOMANYREQUESTS")


async def test_first_match_wins_and_others_are_free(hub, trusting, key):
    """Repositories without a rule cost nothing: no signature is asked for, and nothing of it is imported."""
    hub.add_image("other/app", "1")
    async with trusting() as mirror:
        assert (await mirror.get(manifest_path("1", "other/app"))).status == 200
        assert hub.count(kind="referrers") == 0
        assert {seen.reference for seen in hub.find(kind="manifest")} == {"1"}


async def test_warn(hub, trusting, key):
    """With `mode: warn` everything is served, and counted."""
    image = wrong_key(hub, key)
    async with trusting(mode="warn") as mirror:
        assert [(await mirror.get(path)).status for path in paths(image)] == [200] * 5
        await eventually(lambda: mirror.metric("trust_verdicts_total", result="wrong"), holds=lambda count: count >= 1)


async def test_a_changed_rule_judges_anew(hub, trusting, key, tmp_path):
    """A verdict belongs to a rule: another key refuses what the first one has let through, also by its layers."""
    image = signed_alone(hub, key)
    other = Key.ecdsa()
    other.write(tmp_path, "other.pub")
    async with trusting() as mirror:
        assert [(await mirror.get(path)).status for path in paths(image)] == [200] * 5
        entry = mirror.settings["registries"]["docker.io"]
        rule = {"match": "library/*", "keys": [str(tmp_path / "other.pub")]}
        await mirror.reload(registries={"docker.io": {**entry, "trust": [rule]}})
        assert [(await mirror.get(path)).status for path in paths(image)] == [403] * 5
        await mirror.reload(registries={"docker.io": entry})
        assert [(await mirror.get(path)).status for path in paths(image)] == [200] * 5


async def test_signatures_stay_pullable(hub, mirror, key):
    """Signatures, attestations and bundles are served by tag and digest, with their blobs, though nobody signs them."""
    image = signed_alone(hub, key)
    attestation = {"mediaType": "application/vnd.dsse.envelope.v1+json", "digest": hub.add_blob(APP, b"{}"), "size": 2}
    put_layers(hub, APP, sig_tag(image.digest, ".att"), [attestation])
    bundle = sign_bundle(hub, APP, image.digest, key)
    tags = [sig_tag(image.digest), sig_tag(image.digest, ".att")]
    for method in ("HEAD", "GET"):
        for tag in tags:
            answer = await mirror.get(manifest_path(tag), method)
            assert (answer.status, tag, method) == (200, tag, method)
            assert (await mirror.get(manifest_path(answer.headers["Docker-Content-Digest"]), method)).status == 200
        assert (await mirror.get(manifest_path(bundle), method)).status == 200
    for reference in (*tags, bundle):
        manifest = json.loads((await mirror.get(manifest_path(reference))).body)
        for entry in manifest["layers"]:
            assert (await mirror.get(blob_path(entry["digest"]))).status == 200


async def test_an_image_disguised_as_a_signature(hub, mirror, key):
    """What can be run is no attachment: neither under the tag of a signature, nor with a subject."""
    image = unsigned(hub, key)
    evil = hub.add_image(APP, sig_tag(image.digest))
    assert (await mirror.get(manifest_path(sig_tag(image.digest)))).status == 403
    raw = json.loads(evil.raw)
    raw["subject"] = {"mediaType": image.media_type, "digest": image.digest, "size": len(image.raw)}
    disguised = hub.add_manifest(APP, json.dumps(raw).encode(), evil.media_type, "2")
    for reference in ("2", disguised, evil.digest):
        assert (await mirror.get(manifest_path(reference))).status == 403
    assert (await mirror.get(blob_path(evil.layers[0]))).status == 403


@pytest.mark.parametrize("compressed", [False, True])
async def test_layers_disguised_as_signatures(hub, mirror, key, compressed):
    """Docker unpacks a layer whatever its media type is, so what can be unpacked is not served as a part of an attachment."""
    image = unsigned(hub, key)
    unpacked = layer({"bin/sh": b"evil"})
    evil = hub.add_blob(APP, unpacked if compressed else gzip.decompress(unpacked))
    good = hub.add_blob(APP, b'{"a": 1}')
    entries = [{"mediaType": SIMPLE, "digest": digest, "size": 1} for digest in (evil, good)]
    digest = put_layers(hub, APP, sig_tag(image.digest), entries)
    assert (await mirror.get(manifest_path(digest))).status == 200
    assert (await mirror.get(blob_path(good))).status == 200
    for method in ("HEAD", "GET"):
        assert (await mirror.get(blob_path(evil), method)).status == 403
    assert (await mirror.get(blob_path(evil), headers={"Range": "bytes=600-"})).status == 403


async def test_a_purge_forgets_the_verdict(hub, mirror, key):
    """What is purged is judged anew."""
    signed_alone(hub, key)
    assert (await mirror.get(TAG)).status == 200
    url = f"http://127.0.0.1:{mirror.admin_port}/api/v1/purge"
    async with mirror.session.post(url, json={"match": "docker.io/library/app:*"}) as response:
        assert response.status == 200
    assert (await mirror.get(TAG)).status == 200
    assert await mirror.metric("trust_verdicts_total", result="signed") == 2


async def test_a_signature_under_an_ordinary_tag(hub, mirror, key):
    """A tag for images that names a signature is refused: nothing unsigned is served under it."""
    image = signed_alone(hub, key)
    hub.move_tag(APP, "2", hub.repositories[APP].tags[sig_tag(image.digest)])
    assert (await mirror.get(manifest_path("2"))).status == 403


async def test_a_blob_that_no_manifest_names(hub, mirror, key):
    """A blob that upstream has but no manifest names is refused; one that a signed and an unsigned image share is served."""
    image = signed_alone(hub, key)
    loose = hub.add_blob(APP, b"loose")
    hub.add_image(APP, "2", layers=image.layers)
    assert (await mirror.get(TAG)).status == 200
    assert (await mirror.get(manifest_path("2"))).status == 403
    assert (await mirror.get(blob_path(loose))).status == 403
    assert (await mirror.head(blob_path(loose))).status == 403
    answer = await mirror.get(blob_path(image.layers[0]), headers={"Range": "bytes=0-9"})
    assert answer.status == 206
    assert (await mirror.get(blob_path(image.layers[0]), headers={"If-None-Match": image.layers[0].digest})).status == 304


async def test_garbage_among_signatures(hub, mirror, key):
    """Hundreds of signatures, nonsense and endless nesting are bounded, and end in 403."""
    image = hub.add_image(APP, "1")
    junk = [b"\xff" * 10, b"[" * 10_000, json.dumps({"critical": {}}).encode()]
    put_simple(hub, APP, image.digest, *[(junk[n % 3] + b" " * (n % 9), "AAAA") for n in range(400)])
    for body in (b"no json", b"[" * 100_000, b"x" * (2 << 20)):
        hub.add_referrer(APP, image.digest, BUNDLE, body)
    assert (await mirror.get(TAG)).status == 403
    # Each of the nine payloads and three bundles is fetched once, perhaps over a redirect.
    assert hub.count(kind="blob", method="GET") <= 2 * (9 + 3)


@pytest.mark.parametrize(
    "entry",
    [
        {"size": 1 << 40, "annotations": {"dev.cosignproject.cosign/signature": "AAAA"}},
        {"size": 9, "annotations": "no"},
        {"size": 9},
        {"size": 9, "mediaType": "text/plain", "annotations": {"dev.cosignproject.cosign/signature": "AAAA"}},
    ],
)
async def test_wrong_layers(hub, mirror, key, entry):
    """A layer that cannot be a signature is none, and is not fetched."""
    image = hub.add_image(APP, "1")
    digest = hub.add_blob(APP, content(9))
    put_layers(hub, APP, sig_tag(image.digest), [{"mediaType": SIMPLE, "digest": digest, **entry}])
    assert (await mirror.get(TAG)).status == 403
    assert hub.count(kind="blob") == 0


async def test_many_layers_as_a_bundle(hub, mirror, key):
    """A manifest has one bundle; what else it names is not fetched."""
    image = hub.add_image(APP, "1")
    blobs = [b'{"n": %d}' % n for n in range(9)]
    entries = [{"mediaType": BUNDLE, "digest": hub.add_blob(APP, blob), "size": len(blob)} for blob in blobs]
    subject = {"mediaType": image.media_type, "digest": image.digest, "size": len(image.raw)}
    put_layers(hub, APP, "bundle", entries, subject=subject, artifactType=BUNDLE)
    assert (await mirror.get(TAG)).status == 403
    assert len({seen.reference for seen in hub.find(kind="blob")}) == 1


@pytest.mark.parametrize("is_bundle", [False, True])
async def test_large_blobs_as_signatures(hub, mirror, key, is_bundle):
    """A blob that is larger than its manifest states is no signature, and is not fetched."""
    image, large = hub.add_image(APP, "1"), hub.add_blob(APP, content(3 << 20))
    if is_bundle:
        entries = [{"mediaType": BUNDLE, "digest": large, "size": 10}]
        subject = {"mediaType": image.media_type, "digest": image.digest, "size": len(image.raw)}
        put_layers(hub, APP, "bundle", entries, subject=subject, artifactType=BUNDLE)
    else:
        annotations = {"dev.cosignproject.cosign/signature": "AAAA"}
        put_layers(
            hub, APP, sig_tag(image.digest), [{"mediaType": SIMPLE, "digest": large, "size": 10, "annotations": annotations}]
        )
    assert (await mirror.get(TAG)).status == 403
    assert hub.count(kind="blob", method="GET", reference=str(large)) == 0


async def test_malformed_manifest_of_signatures(hub, mirror, key):
    """A manifest of signatures that is none counts as an answer that makes no sense: nothing is remembered."""
    image = hub.add_image(APP, "1")
    put_layers(hub, APP, sig_tag(image.digest), [7])
    assert (await mirror.get(TAG)).status == 503


async def test_signature_that_names_itself(hub, mirror, key):
    """An index of referrers that contains itself, or the image, does not make the mirror turn in circles."""
    image = unsigned(hub, key)
    tag = sig_tag(image.digest, "")
    entries = [{"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": image.digest, "size": 1}]
    index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": entries}
    hub.add_manifest(APP, json.dumps(index).encode(), index["mediaType"], tag)
    hub.referrers = False
    assert (await mirror.get(TAG)).status == 403
    assert (await mirror.get(manifest_path(tag))).status == 200
    assert (await mirror.get(manifest_path(image.digest))).status == 403
