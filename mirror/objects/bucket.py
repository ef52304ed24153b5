"""The client of an S3 bucket, the one module that knows obstore. Every call is bounded; none is made while the bucket fails."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import obstore
import structlog
from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import S3Store
from prometheus_client import Counter

from mirror.core.breaker import Admission, Breaker
from mirror.errors import UpstreamDisconnected, UpstreamError, UpstreamProtocolError, UpstreamTimeout
from mirror.objects.address import BucketAddress, KeyFile
from mirror.objects.keys import LAYOUT_KEY

T = TypeVar("T")

log = structlog.get_logger(__name__)

PART_BYTES = 8 << 20
PARTS_AT_ONCE = 4
# The most that S3 takes for one object.
_MAX_PARTS = 10_000
_BLOCK_BYTES = 256 << 10
_LONGEST_PAUSE_S = 60.0
_CAUSE_CHARACTERS = 200
_DENIED = (PermissionDeniedError, UnauthenticatedError)


class ObjectsUnavailable(UpstreamError):
    """The bucket does not answer, or refuses to."""

    reason = "objects"


class ObjectAbsent(UpstreamError):
    """The bucket has no such object, or not these bytes of it."""

    reason = "absent"


@dataclass(frozen=True)
class SmallObject:
    """A whole object."""

    data: bytes
    content_type: str | None
    metadata: Mapping[str, str]


class Bucket:
    """Reads and writes objects. `run` has to run beside: it finds out when a bucket that has failed is back.

    Args:
        requests: counts requests by `op` and `status`.
    """

    def __init__(self, address: BucketAddress, requests: Counter) -> None:
        self._address = address
        self._requests = requests
        self._store = _store(address)
        self._breaker = Breaker(longest=_LONGEST_PAUSE_S)
        self._failed = asyncio.Event()

    @property
    def is_up(self) -> bool:
        """Whether the bucket answers, as far as is known."""
        return self._breaker.is_closed

    async def run(self) -> None:
        """Ask a bucket that has failed from time to time, until cancelled."""
        while True:
            await self._failed.wait()
            await asyncio.sleep(self._breaker.wait(time.monotonic()))
            with contextlib.suppress(UpstreamError):
                await self.check(trial=True)
            if self._breaker.is_closed:
                self._failed.clear()
                log.info("objects_up", bucket=self._address.bucket)

    async def check(self, *, trial: bool = False) -> None:
        """Ask whether the bucket answers. Raises ObjectsUnavailable.

        Args:
            trial: ask also a bucket that has failed a moment ago.
        """
        # A GET: the answer to a HEAD does not tell a bucket that does not exist from an object that does not.
        with contextlib.suppress(ObjectAbsent):
            await self._call("get", partial(self._read, LAYOUT_KEY, _BLOCK_BYTES), self._address.answer_s, trial=trial)

    # ---- reading

    @contextlib.asynccontextmanager
    async def open(self, key: str, start: int, stop: int | None) -> AsyncIterator[ObjectStream]:
        """Open a stream of a range of an object; `stop` is the end, not included, None for the end of the object.

        Raises:
            ObjectAbsent: there are no such bytes.
            ObjectsUnavailable: the bucket fails, or has failed a moment ago.
        """
        options: Any = {} if start == 0 and stop is None else {"range": {"offset": start} if stop is None else (start, stop)}
        get = partial(obstore.get_async, self._store, key, options=options)
        result = await self._call("get", get, self._address.answer_s)
        if result.range[0] != start:
            raise ObjectsUnavailable(f"the bucket answers from byte {result.range[0]} where {start} was asked for")
        yield ObjectStream(result, self._address.stall_s, self._broke_off)

    async def read(self, key: str, limit: int) -> SmallObject:
        """Read a whole object. Raises like `open`, and ObjectAbsent if it is longer than `limit` bytes."""
        return await self._call("get", partial(self._read, key, limit), self._address.answer_s)

    async def size(self, key: str) -> int | None:
        """The bytes of an object, None if there is none. Raises ObjectsUnavailable."""
        try:
            return await self._call("head", partial(self._head, key), self._address.answer_s)
        except ObjectAbsent:
            return None

    # ---- writing

    async def put(self, key: str, data: bytes, attributes: Mapping[str, str], *, replace: bool = False) -> None:
        """Write an object of at most `PART_BYTES`; one that exists stays unless `replace`. Raises ObjectsUnavailable."""
        mode: Any = "overwrite" if replace else "create"
        put = partial(obstore.put_async, self._store, key, data, attributes=dict(attributes), use_multipart=False, mode=mode)
        await self._call("put", put, self._address.part_s)

    async def put_parts(self, key: str, pieces: AsyncIterator[bytes], size: int, attributes: Mapping[str, str]) -> None:
        """Write a large object; nothing of it is visible before its end. Ends early only by an error of `pieces`.

        Args:
            pieces: blocks of at most `PART_BYTES`.

        Raises:
            ObjectsUnavailable: the bucket fails.
        """
        part = max(PART_BYTES, -(-size // _MAX_PARTS))
        put = partial(
            obstore.put_async,
            self._store,
            key,
            pieces,
            attributes=dict(attributes),
            use_multipart=True,
            chunk_size=part,
            max_concurrency=PARTS_AT_ONCE,
        )
        # The client of the library bounds each part; this is for a library that hangs.
        await self._call("put", put, self._address.part_s * (2 + size // part))

    async def delete(self, key: str) -> None:
        """Delete an object, if there is one. Raises ObjectsUnavailable."""
        with contextlib.suppress(ObjectAbsent):
            await self._call("delete", partial(obstore.delete_async, self._store, key), self._address.answer_s)

    async def _read(self, key: str, limit: int) -> SmallObject:
        result = await obstore.get_async(self._store, key)
        if result.meta["size"] > limit:
            raise FileNotFoundError(f"{key} has {result.meta['size']} bytes")
        attributes = {str(name): str(value) for name, value in result.attributes.items()}
        return SmallObject(bytes(await result.bytes_async()), attributes.get("Content-Type"), attributes)

    async def _head(self, key: str) -> int:
        return int((await obstore.head_async(self._store, key))["size"])

    # ---- failures

    async def _call(self, op: str, work: Callable[[], Awaitable[T]], timeout_s: float, *, trial: bool = False) -> T:
        admission = self._breaker.reserve() if trial else Admission.NORMAL
        if not trial and not self._breaker.is_closed:
            raise ObjectsUnavailable("the bucket has failed a moment ago")
        try:
            async with asyncio.timeout(timeout_s):
                result = await work()
        except AlreadyExistsError:
            self._succeeded(op, "exists")
            return None  # type: ignore[return-value]
        except (BaseError, OSError, TimeoutError) as error:
            raise self._failure(op, error, admission) from error
        except BaseException:
            self._breaker.released(admission)
            raise
        self._succeeded(op, "ok")
        return result

    def _succeeded(self, op: str, status: str) -> None:
        self._requests.labels(op, status).inc()
        self._breaker.succeeded()

    def _failure(self, op: str, error: BaseException, admission: Admission) -> UpstreamError:
        cause = _cause(error)
        if _is_about_object(error):
            self._succeeded(op, "absent")
            return ObjectAbsent(cause)
        if isinstance(error, TimeoutError):
            status, cause = "timeout", "no answer within the time limit"
        else:
            status = "denied" if isinstance(error, _DENIED) else "error"
        self._requests.labels(op, status).inc()
        self._note_failure(cause, admission, grave=status != "error" or "error sending request" in cause)
        return ObjectsUnavailable(f"the bucket {self._address.bucket}: {cause}")

    def _broke_off(self, cause: str) -> None:
        self._requests.labels("get", "cut").inc()
        self._note_failure(cause, Admission.NORMAL, grave=True)

    def _note_failure(self, cause: str, admission: Admission, *, grave: bool) -> None:
        was_up = self.is_up
        if self._breaker.failed(time.monotonic(), admission, grave=grave):
            self._failed.set()
            if was_up:
                log.warning("objects_down", bucket=self._address.bucket, cause=cause, consequence="upstream is asked instead")


class ObjectStream:
    """A range of an object as it arrives; see `mirror.download.source.BlobStream`.

    Args:
        broke_off: told the cause if the body fails.
    """

    def __init__(self, result: obstore.GetResult, stall_s: float, broke_off: Callable[[str], None]) -> None:
        self.start, self._stop = result.range
        self.size = int(result.meta["size"])
        self.is_partial = True
        self.metadata = {str(name): str(value) for name, value in result.attributes.items()}
        self._result = result
        self._stall_s = stall_s
        self._broke_off = broke_off

    async def blocks(self) -> AsyncGenerator[bytes, None]:
        """The bytes; raises UpstreamError if the body stalls, breaks off, or has another length than announced."""
        position, blocks = self.start, aiter(self._result.stream(min_chunk_size=_BLOCK_BYTES))
        while (block := await self._next(blocks)) is not None:
            position += len(block)
            if position > self._stop:
                raise UpstreamProtocolError("the bucket sends more than it announced")
            yield block
        if position < self._stop:
            self._broke_off("a body ended early")
            raise UpstreamDisconnected(f"the bucket ended an object at byte {position} of {self._stop}")

    async def _next(self, blocks: AsyncIterator[Any]) -> bytes | None:
        try:
            async with asyncio.timeout(self._stall_s):
                return bytes(await anext(blocks))
        except StopAsyncIteration:
            return None
        except TimeoutError as error:
            self._broke_off("a body stalls")
            raise UpstreamTimeout(f"the bucket sent nothing for {self._stall_s:g} s") from error
        except (BaseError, OSError) as error:
            self._broke_off(_cause(error))
            raise UpstreamDisconnected(f"the bucket: {_cause(error)}") from error


def _store(address: BucketAddress) -> S3Store:
    options: Any = {
        "connect_timeout": f"{address.answer_s:g}s",
        "timeout": f"{_LONGEST_PAUSE_S * 60:g}s",
        "read_timeout": f"{address.part_s:g}s",
        "allow_http": (address.endpoint or "").startswith("http:"),
    }
    if address.ca_file is not None:
        options["root_certificate"] = address.ca_file.read_bytes()
    more: dict[str, Any] = {}
    if address.endpoint is not None:
        more["endpoint"] = address.endpoint
    if address.access_key_file is not None:
        more["credential_provider"] = KeyFile(address.access_key_file)
    return S3Store(
        address.bucket,
        prefix=address.prefix or None,
        region=address.region,
        client_options=options,
        retry_config={"max_retries": 1, "retry_timeout": timedelta(seconds=10)},
        # TLS protects the payload, and its hash would cost more than the rest of an upload.
        unsigned_payload=(address.endpoint or "https:").startswith("https:"),
        **more,
    )


def _is_about_object(error: BaseException) -> bool:
    """Whether an error says that an object, or a range of it, does not exist."""
    text = str(error)
    if isinstance(error, FileNotFoundError):
        return "NoSuchBucket" not in text
    return "416 Range Not Satisfiable" in text


def _cause(error: BaseException) -> str:
    """One line about an error of the library, which repeats itself on the next ones."""
    line = str(error).partition("\n")[0] or type(error).__name__
    return line[-_CAUSE_CHARACTERS:] if len(line) > _CAUSE_CHARACTERS else line
