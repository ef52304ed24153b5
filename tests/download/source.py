"""An upstream for one blob in memory, which does exactly what a test says and counts every byte it gives."""

import asyncio
import contextlib


class Gate:
    """Holds whoever comes by until it is released."""

    def __init__(self):
        self.reached = asyncio.Event()
        self._open = asyncio.Event()

    async def passed(self):
        self.reached.set()
        await self._open.wait()

    def release(self):
        self._open.set()


class Stream:
    """The answer to one request."""

    def __init__(self, source, start, stop, size):
        self.start = start
        self.size = size
        self.is_partial = not source.ignores_ranges
        self._source = source
        self._stop = stop if self.is_partial else None
        self._position = start

    async def blocks(self):
        source = self._source
        end = len(source.data) if self._stop is None else self._stop
        if not self.is_partial and self._position:
            # What comes before is received all the same.
            source.take(0, self._position)
        while True:
            await source.passing(self._position)
            if self._position >= end:
                return
            if self._position in source.ends:
                # A turn of the event loop, as any real answer takes.
                await asyncio.sleep(0)
                return
            stop = source.next_stop(self._position, end)
            block = source.take(self._position, stop)
            self._position = stop
            yield block


class ScriptedSource:
    """Serves `data` in blocks that end at multiples of `block`, at gates and at faults.

    `opens` are the requests as (start, stop), `sent` the blocks given, in order. What is scripted happens once, but for `ends`:
    positions at which every stream ends as if that were all that was asked for.
    """

    owner = None

    def __init__(self, data, block=64 << 10):
        self.data = data
        self.block = block
        self.opens = []
        self.sent = []
        self.under_way = self.most_under_way = 0
        self.sizes = []
        self.ignores_ranges = False
        self.ends = set()
        self._gates = {}
        self._faults = {}
        self._corrupt = set()
        self._refusals = []
        self._answer = None

    lazy_size = named = ranges = None
    origin = "upstream"

    def named_size(self):
        """By a manifest."""
        return self.named

    def keep_open(self):
        """It never closes."""
        return contextlib.nullcontext()

    def penalize(self):
        """There is no other."""

    def hold_answer(self):
        """Do not answer the next requests until the gate is released."""
        self._answer = Gate()
        return self._answer

    def gate(self, position):
        """Give no byte from `position` on until the gate is released."""
        gate = self._gates[position] = Gate()
        return gate

    def fail_at(self, position, *errors):
        """Break the stream that comes to `position`, once for each error."""
        self._faults.setdefault(position, []).extend(errors)

    def refuse(self, *errors, start=None):
        """Answer the next requests (from `start`, if given) with these errors, one each."""
        self._refusals.extend((start, error) for error in errors)

    def corrupt(self, position):
        """Invert the byte at `position` the next time it is sent."""
        self._corrupt.add(position)

    @contextlib.asynccontextmanager
    async def open(self, start, stop):
        self.opens.append((start, stop))
        if self._answer is not None:
            await self._answer.passed()
        for refusal in self._refusals:
            if refusal[0] in (None, start):
                self._refusals.remove(refusal)
                raise refusal[1]
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            yield Stream(self, start, stop, self.sizes.pop(0) if self.sizes else len(self.data))
        finally:
            self.under_way -= 1

    def fetched_twice(self):
        """The parts that were given more than once."""
        seen, twice = 0, []
        for start, stop in sorted(self.sent):
            if start < seen:
                twice.append((start, min(stop, seen)))
            seen = max(seen, stop)
        return twice

    def given(self):
        """Bytes given in all."""
        return sum(stop - start for start, stop in self.sent)

    # ---- for the stream

    async def passing(self, position):
        if position in self._gates:
            await self._gates[position].passed()
        if self._faults.get(position):
            raise self._faults[position].pop(0)

    def next_stop(self, position, end):
        faults = [at for at, errors in self._faults.items() if errors]
        marks = [mark for mark in (*self._gates, *self.ends, *faults) if mark > position]
        return min([position - position % self.block + self.block, end, *marks])

    def take(self, start, stop):
        self.sent.append((start, stop))
        block = self.data[start:stop]
        for at in [at for at in self._corrupt if start <= at < stop]:
            self._corrupt.remove(at)
            block = block[: at - start] + bytes([block[at - start] ^ 0xFF]) + block[at - start + 1 :]
        return block
