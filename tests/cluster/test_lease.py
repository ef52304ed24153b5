"""What an answer of Redis that is lost costs; leases at a real Redis are in `tests/e2e/test_cluster_lease.py`."""

from mirror.cluster.identity import Identity
from mirror.cluster.keys import Keys
from mirror.cluster.lease import Alone, Leases, Own
from mirror.cluster.link import LinkDown, LinkRefused
from mirror.core.digest import Digest

DIGEST = Digest.of(b"x")


class Link:
    """A link whose calls end as the test says; so many failures end it."""

    def __init__(self, *results, failures=3):
        self.results = list(results)
        self.is_up = True
        self.calls = 0
        self._failures = failures

    async def call(self, *_):
        self.calls += 1
        result = self.results.pop(0)
        if isinstance(result, LinkDown):
            self._failures -= 1
            self.is_up = self._failures > 0
            raise result
        return result


async def asked(link):
    leases = Leases(link, Keys("x", str), Identity("http://me", ""), 8)
    return await leases.ask(DIGEST, "", "scope", may_own=True)


async def test_lost_answers_cost_no_blob():
    """While the link is up, a node asks again instead of fetching the blob by itself."""
    link = Link(LinkDown("late"), LinkDown("late"), [b"owned", b"own|t|me|"])
    assert await asked(link) == Own("own|t|me|", is_new=False)


async def test_nobody_asks_a_link_that_has_ended():
    link = Link(LinkDown("late"), LinkDown("late"), failures=2)
    assert await asked(link) == Alone()
    assert link.calls == 2


async def test_three_calls_at_most():
    link = Link(*[LinkDown("late")] * 3, failures=9)
    assert await asked(link) == Alone()
    assert link.calls == 3


async def test_refusal_is_final():
    link = Link(LinkRefused("full"))
    assert await asked(link) == Alone()
    assert link.calls == 1
