"""A second try beside the first: who answers first is taken, and nothing that the other one held is left behind."""

import asyncio
import contextlib

import pytest

from mirror.errors import NotFound, UpstreamBusy, UpstreamDisconnected, UpstreamError, UpstreamRefusal, UpstreamTimeout
from mirror.upstream.attempt import Attempt, Place
from mirror.upstream.hedge import hedged
from tests.support.waiting import LIMIT

SOON, NEVER = 0.01, 60.0


class Attempts:
    """Two attempts whose ends a test decides."""

    def __init__(self):
        self.begun, self.cancelled, self.discarded = [], [], []
        self.ends = None

    async def attempt(self, second):
        self.begun.append(second)
        try:
            return self.answered(await self.ends[second])
        except asyncio.CancelledError:
            self.cancelled.append(second)
            raise
        except (UpstreamError, UpstreamRefusal) as error:
            return Attempt(Place.REGISTRY, error=error)

    def answered(self, result):
        resources = contextlib.AsyncExitStack()
        resources.push_async_callback(self.discard, result)
        return Attempt(Place.REGISTRY, result, resources=resources)

    async def discard(self, result):
        self.discarded.append(result)

    def run(self, after=SOON, allowed=True):
        loop = asyncio.get_running_loop()
        self.ends = [loop.create_future(), loop.create_future()]
        return asyncio.create_task(self._value(after, allowed))

    async def _value(self, after, allowed):
        return (await hedged(self.attempt, after, lambda: allowed)).value()

    async def both(self):
        async with asyncio.timeout(LIMIT):
            while len(self.begun) < 2:
                await asyncio.sleep(0.001)


@pytest.fixture
def tasks_made():
    """Counts the tasks that are made inside a context."""

    @contextlib.contextmanager
    def counted():
        loop, made = asyncio.get_running_loop(), []

        def make(loop, work, **options):
            made.append(task := asyncio.Task(work, loop=loop, **options))
            return task

        loop.set_task_factory(make)
        try:
            yield made
        finally:
            loop.set_task_factory(None)

    return counted


@pytest.fixture
def attempts():
    return Attempts()


async def test_answer_in_time_is_asked_for_once(attempts):
    """Where the answer comes at once there is no second attempt."""
    running = attempts.run(after=NEVER)
    attempts.ends[False].set_result("one")
    assert await running == "one"
    assert attempts.begun == [False]


async def test_answer_in_time_costs_one_task(attempts, tasks_made):
    """A request that is answered in time costs one task: there is nothing to cancel, and nothing to wait for."""
    loop = asyncio.get_running_loop()
    attempts.ends = [loop.create_future(), loop.create_future()]
    attempts.ends[False].set_result("one")
    with tasks_made() as made:
        assert await attempts._value(NEVER, True) == "one"
    assert len(made) == 1


@pytest.mark.parametrize("first", [False, True])
async def test_first_answer_is_taken(attempts, first):
    """Whichever attempt answers first is it, and the other one is cancelled."""
    running = attempts.run()
    await attempts.both()
    attempts.ends[first].set_result("answer")
    assert await running == "answer"
    assert attempts.cancelled == [not first]
    assert attempts.discarded == []


async def test_two_answers_at_once(attempts):
    """Of two answers in the same moment one is taken, and the other given back."""
    running = attempts.run()
    await attempts.both()
    for second in (False, True):
        attempts.ends[second].set_result(second)
    assert [await running, *attempts.discarded] in ([False, True], [True, False])


async def test_not_allowed(attempts):
    """Where a second attempt would cost too much the first goes on alone."""
    running = attempts.run(allowed=False)
    await asyncio.sleep(5 * SOON)
    attempts.ends[False].set_result("one")
    assert await running == "one"
    assert attempts.begun == [False]


async def test_failure_waits_for_the_other(attempts):
    """A failure of one attempt does not end the other; when both have failed the first one's counts, unless it was only busy."""
    running = attempts.run()
    await attempts.both()
    attempts.ends[True].set_exception(UpstreamBusy("no connection"))
    await asyncio.sleep(0)
    attempts.ends[False].set_exception(UpstreamTimeout("late"))
    with pytest.raises(UpstreamTimeout):
        await running


async def test_failure_in_time_is_not_repeated(attempts):
    """An attempt that fails before the second is due is a failure."""
    running = attempts.run(after=NEVER)
    attempts.ends[False].set_exception(UpstreamDisconnected("cut"))
    with pytest.raises(UpstreamDisconnected):
        await running
    assert attempts.begun == [False]


async def test_no_is_an_answer(attempts):
    """What upstream refuses on one connection it need not say on the other."""
    running = attempts.run()
    await attempts.both()
    attempts.ends[True].set_exception(NotFound("no"))
    with pytest.raises(NotFound):
        await running
    assert attempts.cancelled == [False]


async def test_who_waits_gives_up(attempts):
    """If who waits is cancelled, so are both attempts, and an answer that has just come is given back."""
    running = attempts.run()
    await attempts.both()
    attempts.ends[True].set_result("too late")
    # The attempt ends in this step of the loop, and who waits for it would go on in a later one.
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert attempts.cancelled == [False]
    assert attempts.discarded == ["too late"]


class SlowToGiveUp(Attempts):
    """Attempts that answer when they are cancelled, as soon as a test lets them."""

    def __init__(self):
        super().__init__()
        self.ending, self.may_end = asyncio.Event(), asyncio.Event()

    async def attempt(self, second):
        try:
            return await super().attempt(second)
        except asyncio.CancelledError:
            self.ending.set()
            await self.may_end.wait()
            return self.answered(second)


@pytest.mark.parametrize("answered", [False, True])
async def test_cancelled_while_collecting(answered):
    """A cancellation that comes while attempts are being ended loses nothing that they held, and still counts."""
    attempts = SlowToGiveUp()
    running = attempts.run()
    await attempts.both()
    if answered:
        attempts.ends[True].set_result("answer")
    else:
        running.cancel()
    await attempts.ending.wait()
    running.cancel()
    await asyncio.sleep(0)
    attempts.may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert sorted(map(str, attempts.discarded)) == sorted(["False", "answer" if answered else "True"])


async def test_cancelled_while_giving_back(attempts):
    """A cancellation that comes while one result is given back does not keep the other one."""
    giving_back, may_go_on = asyncio.Event(), asyncio.Event()

    async def discard(result):
        giving_back.set()
        await may_go_on.wait()
        attempts.discarded.append(result)

    attempts.discard = discard
    running = attempts.run()
    await attempts.both()
    for second in (False, True):
        attempts.ends[second].set_result(second)
    await giving_back.wait()
    running.cancel()
    await asyncio.sleep(0)
    may_go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert sorted(attempts.discarded) == [False, True]
