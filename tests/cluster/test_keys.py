"""Names in Redis: one hash slot, and nothing shared by nodes that are configured differently."""

import re

from mirror.cluster.keys import Keys
from mirror.core.digest import Digest
from mirror.core.names import Repository, Tag
from mirror.core.scope import scope_of

DIGEST = Digest.of(b"")
APP = Repository.parse("docker.io", "library/app")
LATEST = Tag.parse("latest")


def keys(account):
    return Keys("prod", lambda name: scope_of(name, ["https://one.example", "https://two.example"], account))


def test_all_keys_have_one_hash_slot():
    one = keys(None)
    names = [one.lease(DIGEST), one.askers(DIGEST), one.manifest(DIGEST), one.manifest_turn(DIGEST), one.nodes, one.node("n")]
    names += [one.grant("blob", APP, DIGEST), one.sight(APP, DIGEST)]
    names += [one.tag(APP, LATEST), one.tag_turn(APP, LATEST), one.kept_tag(APP, LATEST), one.refusal("manifest", APP, LATEST)]
    names += [one.account("docker.io", "one.example", "mac"), one.upstream("docker.io", "one.example")]
    assert len(set(names)) == len(names)
    assert {re.search(r"\{(.+?)\}", name)[1] for name in names} == {"prod"}


def test_grants_belong_to_an_account():
    assert keys(None).grant("blob", APP, DIGEST) == keys(None).grant("blob", APP, DIGEST)
    assert keys(None).grant("blob", APP, DIGEST) != keys("robot").grant("blob", APP, DIGEST)
    assert "robot" not in keys("robot").grant("blob", APP, DIGEST)


def test_scope_has_the_order_of_upstreams():
    assert scope_of("r", ["a", "b"], None) != scope_of("r", ["b", "a"], None)
