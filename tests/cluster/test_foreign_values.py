"""Values in Redis that no version of a node has written: damaged, or hostile."""

import json
import types

import pytest

from mirror.cluster.accounts import SharedAccount, SharedAccounts
from mirror.cluster.identity import Identity
from mirror.cluster.keys import Keys
from mirror.cluster.members import Members
from mirror.cluster.news import News
from mirror.cluster.quota import SharedQuota
from mirror.cluster.refusals import Refusals
from mirror.core.counts import CountTable, Total
from mirror.core.names import Repository, Tag
from mirror.core.pull_quota import PullQuota
from mirror.metrics import Metrics
from mirror.upstream.login import Credentials, LoginRefusals

KEYS = Keys("prod", lambda name: name)
APP = Repository.parse("docker.io", "library/app")
NOW_MS = 1_700_000_000_000
DAY_S = 86_400.0


class Link:
    """Answers each script with the same."""

    def __init__(self, answer):
        self.calls = 0
        self._answer = answer

    async def call(self, *_):
        self.calls += 1
        return self._answer


@pytest.mark.parametrize("value", [b"3", b"", b"\xff", b"2 "])
async def test_refusal_of_another_version(value):
    """It is none: upstream is asked."""
    await Refusals(Link(value), KEYS, "me").raise_if_refused("manifest", APP, Tag.parse("1"))


async def adopted(*words):
    """The state of a quota after a look at these fields."""
    quota = PullQuota()
    health = types.SimpleNamespace(quota_source="", own=types.SimpleNamespace(name="up"), clock=lambda: 0.0, pull_quota=quota)
    shared = SharedQuota(News(Link([NOW_MS, list(words)]), KEYS, "me", None), "docker.io", health, "account")
    await shared.adopt()
    return quota.state(0.0)


@pytest.mark.parametrize("text", [b"1|" + b"9" * 400, b"1|" + b"9" * 5000, b"9" * 5000 + b"|1", b"-1|2", b"|", b"1", b"\xff|1"])
async def test_pulls_left_that_make_no_sense(text):
    state = await adopted(b"left", text)
    assert state.remaining is None


async def test_waits_that_nobody_means():
    """A request of no known kind is not refused, and no request for longer than a day."""
    state = await adopted(b"odd", b"%d" % (NOW_MS + 5000), b"blob", b"9" * 15, b"manifest", b"%d" % (NOW_MS + 5000))
    assert state.waits == {"blob": DAY_S, "manifest": 5.0}


@pytest.mark.parametrize(
    "facts",
    [
        b"[" * 100_000,
        b'"text"',
        b'{"clock": "no", "started": {}, "owed": [], "version": 1, "state": null, "zone": "%s"}' % (b"x" * 10_000),
        b'{"clock": NaN, "started": Infinity, "owed": 1%s, "name": "other", "self": true}' % (b"0" * 400),
    ],
)
async def test_node_that_says_nonsense_of_itself(facts):
    """It is listed, without what it says."""
    members = Members(Link([b"node", facts]), KEYS, Identity("me"), None, Metrics())
    (found,) = await members.list()
    assert (found.name, found.facts) == ("node", {})


async def test_facts_of_a_newer_version():
    known = {"version": "9", "clock": -0.5}
    members = Members(Link([b"node", json.dumps({**known, "color": "red"}).encode()]), KEYS, Identity("me"), None, Metrics())
    assert (await members.list())[0].facts == known


def test_news_after_the_death_of_a_process():
    """What a process has counted goes with it: the next news are news all the same."""
    memory = memoryview(bytearray(CountTable.size(2)))
    dies, lives = (CountTable(memory, 2, own) for own in range(2))
    news = [News(None, KEYS, "me", table.count(Total.NEWS)) for table in (dies, lives)]
    news[0].add()
    seen = news[1].number
    lives.clear(0)
    news[1].add()
    assert news[1].number != seen


async def login_refusals(link):
    """What other processes know of an account."""
    news = News(link, KEYS, "me", types.SimpleNamespace(total=0))
    secret = types.SimpleNamespace(name=lambda *_: "mac")
    shared = SharedAccount(SharedAccounts(news, secret, "me 0"), "docker.io", "up", None)
    return await shared.ask(Credentials("robot", "password"), takes_turn=True)


@pytest.mark.parametrize(
    ("answer", "known"),
    [
        ([1, 10**9, 10**15], LoginRefusals(64, 3600.0)),
        ([1, -1, 60_000], LoginRefusals(1, 60.0)),
        ([0, -1, 0], LoginRefusals()),
        ([7, 1, 60_000], LoginRefusals(1)),
    ],
)
async def test_refusals_of_an_account_that_make_no_sense(answer, known):
    """No pause is longer than that of a mirror by itself."""
    assert await login_refusals(Link(answer)) == known


async def test_wait_for_the_turn_of_another_process(monkeypatch):
    """Thousands of processes may wait: together they must not ask more often than Redis can answer."""
    monkeypatch.setattr("mirror.cluster.accounts.TURN_S", 0.6)
    link = Link([2, 0, 5000])
    assert await login_refusals(link) == LoginRefusals()
    assert link.calls <= 6
