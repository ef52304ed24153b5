"""The circuit breaker: who is let through, and when."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.core.breaker import Admission, Breaker

NORMAL, TRIAL = Admission.NORMAL, Admission.TRIAL


def opened(now=0.0):
    breaker = Breaker()
    assert breaker.failed(now, NORMAL)
    return breaker


def test_closed_lets_everybody_through():
    """As long as nothing fails everybody may ask."""
    breaker = Breaker()
    assert [breaker.admit(0) for _ in range(3)] == [NORMAL] * 3
    assert breaker.wait(0) == 0


def test_grave_failure_opens_at_once():
    """One grave failure and nobody is let through for a second."""
    breaker = opened()
    assert breaker.admit(0) is None
    assert breaker.admit(0.99) is None
    assert breaker.wait(0.25) == 0.75


def test_light_failures_open_when_in_a_row():
    """Three light failures in a row open it, and a success in between starts the count anew."""
    breaker = Breaker()
    results = [breaker.failed(0, NORMAL, grave=False) for _ in range(2)]
    breaker.succeeded()
    results += [breaker.failed(0, NORMAL, grave=False) for _ in range(3)]
    assert results == [False, False, False, False, True]


def test_one_trial_at_a_time():
    """After the pause one is let through, and the next only after that one has given back its leave."""
    breaker = opened()
    assert [breaker.admit(1.0) for _ in range(3)] == [TRIAL, None, None]
    breaker.released(TRIAL)
    assert breaker.admit(1.0) is TRIAL


def test_trial_that_succeeds_closes():
    """A trial that succeeds lets everybody through, and the next pause is short again."""
    breaker = opened()
    breaker.admit(1.0)
    breaker.failed(1.0, TRIAL)
    breaker.admit(5.0)
    breaker.succeeded()
    assert breaker.admit(5.0) is NORMAL
    breaker.failed(5.0, NORMAL)
    assert breaker.wait(5.0) == 1


def test_pauses_grow_to_their_bound():
    """Each trial that fails, gravely or not, doubles the pause, up to half a minute."""
    breaker, now, pauses = opened(), 0.0, []
    for _ in range(7):
        pauses.append(breaker.wait(now))
        now += pauses[-1]
        assert breaker.admit(now) is TRIAL
        assert breaker.failed(now, TRIAL, grave=False)
    assert pauses == [1, 2, 4, 8, 16, 30, 30]


def test_late_failures_of_others_say_nothing_new():
    """Fifty requests that were under way when it opened do not make the pause longer, nor end a trial."""
    breaker = opened()
    assert not any(breaker.failed(0.5, NORMAL) for _ in range(50))
    assert breaker.wait(0.5) == 0.5
    assert breaker.admit(1.0) is TRIAL
    breaker.failed(1.0, NORMAL)
    assert breaker.admit(1.0) is None


def test_late_success_closes():
    """What had been under way and is answered after all shows that it works."""
    breaker = opened()
    breaker.succeeded()
    assert breaker.is_closed


def test_reserved_trial():
    """A trial that was reserved before the pause is over is nobody else's after it."""
    breaker = opened()
    assert breaker.reserve() is TRIAL
    assert breaker.admit(100) is None
    breaker.released(TRIAL)
    assert breaker.admit(100) is TRIAL


def test_pause_that_was_asked_for():
    """A pause that is named replaces the doubled one, but none at all is not possible."""
    breaker = Breaker(30, 900, threshold=1)
    breaker.failed(0, NORMAL, pause=77)
    assert breaker.wait(0) == 77
    assert breaker.admit(77) is TRIAL
    breaker.failed(77, TRIAL, pause=0)
    assert breaker.wait(77) == 1


@given(st.lists(st.tuples(st.sampled_from(["admit", "fail", "succeed", "release"]), st.floats(0, 40)), max_size=60))
def test_never_two_trials_and_never_stuck(steps):
    """Whatever happens in whatever order: at most one trial is under way, and a free one comes within the longest pause."""
    breaker, now, trials = Breaker(), 0.0, 0
    for step, pause in steps:
        now += pause
        if step == "admit":
            trials += breaker.admit(now) is TRIAL
        elif step == "succeed":
            breaker.succeeded()
            trials = 0
        elif trials:
            breaker.failed(now, TRIAL) if step == "fail" else breaker.released(TRIAL)
            trials = 0
        elif step == "fail":
            breaker.failed(now, NORMAL)
        assert trials <= 1
        assert breaker.wait(now) <= 30
    if not trials:
        assert breaker.admit(now + 30) is not None


@pytest.mark.parametrize("admission", [NORMAL, TRIAL])
def test_release_when_closed(admission):
    """Leave that is given back after everything works again changes nothing."""
    breaker = Breaker()
    breaker.released(admission)
    assert breaker.admit(0) is NORMAL


def test_how_long_it_has_failed():
    """A row of failures lasts from its first to its last one; a success, or a minute without any, ends it."""
    breaker = Breaker()
    assert breaker.has_failed_for(0) == 0
    for now, lasted in ((1, 0), (3, 2), (50, 49)):
        breaker.failed(now, NORMAL)
        assert breaker.has_failed_for(now) == lasted
    assert breaker.has_failed_for(109) == 49
    assert breaker.has_failed_for(111) == 0
    breaker.failed(112, NORMAL)
    assert breaker.has_failed_for(112) == 0
    breaker.failed(114, NORMAL)
    breaker.succeeded()
    assert breaker.has_failed_for(114) == 0


def test_failures_of_all_who_were_let_in_make_the_row_longer():
    """While it is open the failures of others than the trial change no pause, but show how long it lasts."""
    breaker = opened()
    breaker.failed(7, NORMAL)
    assert breaker.has_failed_for(7) == 7
    assert breaker.wait(0.5) == 0.5


def test_pauses_of_another_breaker():
    """They go on from the longer one: no trial before its end, and the next pause is twice as long as that before."""
    breaker = opened()
    breaker.take_over(3, until=10.0)
    assert (breaker.admits(9.9), breaker.wait(9.0)) == (False, 1.0)
    assert breaker.failed(10.0, breaker.admit(10.0))
    assert (breaker.pauses, breaker.wait(10.0)) == (4, 8.0)
    breaker.take_over(1, until=11.0)
    assert (breaker.pauses, breaker.wait(10.0)) == (4, 8.0)
    closed = Breaker()
    closed.take_over(0, until=10.0)
    assert closed.is_closed
