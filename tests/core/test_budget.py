"""The pull limit: what may be asked for after what a registry has said."""

import pytest

from mirror.core.pull_quota import PullQuota, QuotaPermit, RateLimit

WINDOW = 21600


def ask(budget, kind="manifest", method="GET", now=0.0):
    """Leave to ask, or None."""
    spending = budget.spend(kind, method, now)
    return spending if isinstance(spending, QuotaPermit) else None


def limited(retry_after=None, kind="manifest", method="GET"):
    budget = PullQuota()
    budget.refused(ask(budget, kind, method), kind, retry_after, 0.0)
    return budget


def answered(budget, spending, remaining=None, now=0.0):
    if remaining is not None:
        budget.note(RateLimit(remaining, WINDOW), now)
    budget.answered(spending, now)


def test_no_header_is_needed():
    """A registry that says nothing of a limit is asked without one, for ever."""
    budget = PullQuota()
    for now in range(1000):
        answered(budget, ask(budget, now=now), now=now)
    assert budget.remaining(0) is None
    assert budget.allows_background(1000, 0)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_429_without_a_time(method):
    """After a 429 nothing goes out for half a minute, then one probe; each that fails doubles the time, up to 15 minutes."""
    budget, now, pauses = limited(method=method), 0.0, []
    for _ in range(7):
        wait = budget.spend("manifest", method, now)
        assert not isinstance(wait, QuotaPermit)
        assert ask(budget, "manifest", "HEAD", now) is None
        pauses.append(wait)
        now += wait
        probe = ask(budget, "manifest", method, now)
        assert ask(budget, "manifest", method, now) is None
        budget.refused(probe, "manifest", None, now)
    assert pauses == [30, 60, 120, 240, 480, 900, 900]


def test_429_with_a_time():
    """Retry-After says when the one probe goes out."""
    budget = limited(77)
    assert budget.spend("manifest", "GET", 0) == 77
    assert ask(budget, now=76.9) is None
    assert ask(budget, now=77) is not None
    assert ask(budget, now=77) is None


def test_probe_that_is_answered_ends_the_limit():
    """A probe that is answered lets everything through again."""
    budget = limited()
    answered(budget, ask(budget, now=30), now=30)
    assert all(ask(budget, now=30) for _ in range(10))


def test_probe_that_is_given_up_is_followed_by_another():
    """A probe that nothing came of is not the last one."""
    budget = limited()
    budget.released(ask(budget, now=30))
    assert ask(budget, now=30) is not None


def test_head_that_gets_through_says_nothing_about_pulls():
    """Docker Hub answers HEADs beyond the limit: pulls still wait for a probe of their own."""
    budget = limited()
    answered(budget, ask(budget, "manifest", "HEAD", 30), now=30)
    assert all(ask(budget, "manifest", "HEAD", 30) for _ in range(10))
    assert ask(budget, now=30) is not None
    assert ask(budget, now=30) is None


def test_nothing_left():
    """At no pulls left there is no GET of a manifest, but HEADs and blobs, and one probe for each pause."""
    budget = PullQuota()
    answered(budget, ask(budget), remaining=0)
    assert ask(budget) is None
    assert all(ask(budget, "manifest", "HEAD") for _ in range(10))
    assert all(ask(budget, "blob", "GET") for _ in range(10))
    answered(budget, ask(budget, now=30), remaining=0, now=30)
    assert budget.spend("manifest", "GET", 30) == 60


def test_head_tells_that_there_are_pulls_again():
    """A HEAD with a number of pulls left opens the way for GETs."""
    budget = PullQuota()
    answered(budget, ask(budget), remaining=0)
    answered(budget, ask(budget, "manifest", "HEAD", 5), remaining=3, now=5)
    assert all(ask(budget, now=5) for _ in range(10))


def test_kinds_do_not_hold_each_other_back():
    """A 429 on manifests holds back no blobs, nor one on blobs manifests."""
    assert ask(limited(), "blob", "GET") is not None
    assert ask(limited(kind="blob"), "manifest", "GET") is not None
    assert ask(limited(kind="blob"), "blob", "GET") is None


def test_late_answers_change_nothing():
    """Requests that were under way before the 429 neither end the limit nor make it longer."""
    budget = PullQuota()
    early = [ask(budget) for _ in range(5)]
    budget.refused(early[0], "manifest", None, 0)
    answered(budget, early[1])
    budget.refused(early[2], "manifest", None, 10)
    assert budget.spend("manifest", "GET", 10) == 20


@pytest.mark.parametrize(("remaining", "reserve", "allowed"), [(100, 20, True), (21, 20, True), (20, 20, False), (0, 0, False)])
def test_background_leaves_a_reserve(remaining, reserve, allowed):
    """What nobody waits for stops at the reserve."""
    budget = PullQuota()
    answered(budget, ask(budget), remaining=remaining)
    assert budget.allows_background(reserve, 0) is allowed


def test_background_stops_at_a_429():
    """While anything is limited nothing is asked for in the background; after the pause it may be the one probe."""
    assert not limited().allows_background(0, 0)
    budget = limited(kind="blob")
    assert not budget.allows_background(0, 29)
    assert budget.allows_background(0, 31)
    probe = budget.spend("blob", "GET", 31)
    assert not budget.allows_background(0, 31)
    budget.answered(probe, 32)
    assert budget.allows_background(0, 32)


def test_number_is_forgotten_after_its_window():
    """A number of pulls left says nothing after the window it was for."""
    budget = PullQuota()
    answered(budget, ask(budget), remaining=5)
    assert budget.remaining(WINDOW - 1) == 5
    assert budget.remaining(WINDOW) is None
    assert budget.allows_background(20, WINDOW)


@pytest.mark.parametrize(("remaining", "allowed"), [(None, True), (21, True), (20, False), (0, False)])
def test_second_request_for_a_manifest(remaining, allowed):
    """What counts is asked for a second time only while there are plenty of pulls; what does not count always may be."""
    budget = PullQuota()
    if remaining is not None:
        budget.note(RateLimit(remaining, WINDOW), 0.0)
    assert budget.allows_second("manifest", "GET", 1.0) is allowed
    assert budget.allows_second("manifest", "HEAD", 1.0)
    assert budget.allows_second("blob", "GET", 1.0)
    # By then the number says nothing any more; with none left a probe has to tell first.
    assert budget.allows_second("manifest", "GET", WINDOW + 1.0) is (remaining != 0)


def test_no_second_request_after_a_429():
    """Of a kind that is limited the one probe is not doubled."""
    budget = limited(kind="blob")
    assert not budget.allows_second("blob", "GET", 1.0)
    assert budget.allows_second("tags", "GET", 1.0)


@pytest.mark.parametrize(("remaining", "plenty"), [(None, True), (61, True), (60, False), (0, False)])
def test_plenty(remaining, plenty):
    """A pull need not be saved while the limit is unknown, or leaves more than twice the reserve and 20."""
    budget = PullQuota()
    if remaining is not None:
        budget.note(RateLimit(remaining, WINDOW), 0.0)
    assert budget.has_plenty(20, 1.0) is plenty


@pytest.mark.parametrize("kind", ["manifest", "blob"])
def test_no_plenty_near_a_429(kind):
    """For an hour after a 429 of any kind pulls are saved, whatever is left."""
    budget = limited(kind=kind)
    budget.note(RateLimit(1000, WINDOW), 31.0)
    assert not budget.has_plenty(20, 3599.0)
    assert budget.has_plenty(20, 3600.0)


def test_limit_of_another_mirror():
    """What one mirror has learned keeps the other from asking, for as long as it counts."""
    one, other = PullQuota(), PullQuota()
    permit = one.spend("manifest", "GET", 0.0)
    assert isinstance(permit, QuotaPermit)
    one.refused(permit, "manifest", 100.0, 0.0)
    one.note(RateLimit(7, 50), 0.0)
    other.learn(one.state(10.0), 1000.0)
    assert other.remaining(1039.0) == 7
    assert other.remaining(1041.0) is None
    assert not other.admits("manifest", "HEAD", 1089.0)
    assert other.admits("manifest", "GET", 1091.0)
    assert other.admits("blob", "GET", 1000.0)


def test_no_pulls_left_elsewhere():
    one, other = PullQuota(), PullQuota()
    one.note(RateLimit(0, 600), 0.0)
    other.learn(one.state(1.0), 1.0)
    assert not other.admits("manifest", "GET", 2.0)
    assert other.admits("manifest", "HEAD", 2.0)
    one.note(RateLimit(5, 600), 3.0)
    other.learn(one.state(3.0), 3.0)
    assert other.admits("manifest", "GET", 3.0)
