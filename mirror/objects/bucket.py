"""The client of an S3 bucket, the one module that knows obstore. Every call is bounded; none is made while the bucket fails."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, TypeVar

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import S3Store
from prometheus_client import Counter

from mirror.errors import UpstreamDisconnected, UpstreamProtocolError, UpstreamTimeout
from mirror.objects.address import BucketAddress, KeyFile
from mirror.objects.calls import Call, CallFailed, GuardedCalls, ObjectAbsent, ObjectsUnavailable
from mirror.objects.file_parts import Part
from mirror.objects.keys import LAYOUT_KEY

T = TypeVar("T")

PART_BYTES = 8 << 20
PARTS_AT_ONCE = 4
# The most that S3 takes for one object.
_MAX_PARTS = 10_000
_LAYOUT_LIMIT = 4096
# The least that the client hands over before the end: a slow bucket's bytes go on as they come. A fast one gives more at once.
_BLOCK_BYTES = 16 << 10
_CAUSE_CHARACTERS = 200
_DENIED = (PermissionDeniedError, UnauthenticatedError)
# Of a service that answers something at least: its own time limits are shorter.
_CLIENT_TIMEOUT_S = 3600
_PAGE_OBJECTS = 1000


@dataclass(frozen=True)
class SmallObject:
    """A whole object."""

    data: bytes
    content_type: str | None
    metadata: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ListedObject:
    """An object as a list names it.

    Attributes:
        key: its name, without the prefix of the bucket.
        written: in seconds since the epoch.
    """

    key: str
    size: int
    written: float


class Bucket:
    """Reads and writes objects. `run` has to run beside: it finds out when a bucket that has failed is back.

    Args:
        requests: counts requests by `op` and `status`.
    """

    def __init__(self, address: BucketAddress, requests: Counter) -> None:
        self._address = address
        self._calls = GuardedCalls(address.bucket, requests)
        self._store = _store(address)

    @property
    def is_up(self) -> bool:
        """Whether the bucket answers, as far as is known."""
        return self._calls.is_up

    @property
    def problem(self) -> str | None:
        """Why the bucket is not asked; None if it is."""
        return self._calls.problem

    async def run(self) -> None:
        """Ask a bucket that has failed from time to time, until cancelled."""
        await self._calls.run(partial(self.check, trial=True))

    async def check(self, *, trial: bool = False) -> None:
        """Ask whether the bucket answers. Raises ObjectsUnavailable.

        Args:
            trial: ask also a bucket that has failed a moment ago.
        """
        # A GET: the answer to a HEAD does not tell a bucket that does not exist from an object that does not.
        with contextlib.suppress(ObjectAbsent):
            await self._call("get", partial(self._read, LAYOUT_KEY, _LAYOUT_LIMIT), self._address.answer_s, trial=trial)

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
        yield ObjectStream(result, self._address.stall_s, self._calls.broke_off)

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

    async def put(self, key: str, data: Part, attributes: Mapping[str, str], *, replace: bool = False) -> bool:
        """Write an object of at most `PART_BYTES`; False if it exists, and stays unless `replace`. Raises ObjectsUnavailable."""
        mode: Any = "overwrite" if replace else "create"
        put = partial(obstore.put_async, self._store, key, data, attributes=dict(attributes), use_multipart=False, mode=mode)
        return await self._call("put", put, self._address.part_s) is not None

    async def put_parts(self, key: str, parts: AsyncIterator[Part], size: int, attributes: Mapping[str, str]) -> None:
        """Write a large object; nothing of it is visible before its end. Ends early only by an error of `parts`.

        Args:
            parts: of at most `PART_BYTES` each.

        Raises:
            ObjectsUnavailable: the bucket fails.
        """
        part = max(PART_BYTES, -(-size // _MAX_PARTS))
        put = partial(
            obstore.put_async,
            self._store,
            key,
            parts,
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

    # ---- the whole

    async def pages(self, prefix: str) -> AsyncGenerator[Sequence[ListedObject], None]:
        """Yield all objects whose names begin with a prefix, many at a time. Raises ObjectsUnavailable.

        Args:
            prefix: whole components of a name: `a/b` begins `a/b/c`, and not `a/bc`.
        """
        listed = aiter(obstore.list(self._store, prefix, chunk_size=_PAGE_OBJECTS))
        while page := await self._call("list", partial(_next_page, listed), self._address.part_s):
            yield [ListedObject(str(one["path"]), int(one["size"]), _seconds(one["last_modified"])) for one in page]

    async def signed_url(self, key: str, seconds: float) -> str:
        """Return a URL by which anybody may GET an object for some seconds. Raises ObjectsUnavailable."""
        sign = partial(obstore.sign_async, self._store, "GET", key, timedelta(seconds=seconds))
        return str(await self._call("sign", sign, self._address.answer_s))

    async def _read(self, key: str, limit: int) -> SmallObject:
        result = await obstore.get_async(self._store, key)
        if result.meta["size"] > limit:
            raise FileNotFoundError(f"{key} has {result.meta['size']} bytes")
        attributes = {str(name): str(value) for name, value in result.attributes.items()}
        return SmallObject(bytes(await result.bytes_async()), attributes.get("Content-Type"), attributes)

    async def _head(self, key: str) -> int:
        return int((await obstore.head_async(self._store, key))["size"])

    async def _call(self, op: str, work: Callable[[], Awaitable[T]], timeout_s: float, *, trial: bool = False) -> T:
        call = Call(op, timeout_s, is_trial=trial)
        return await self._calls.make(call, partial(_translated, work))


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


async def _next_page(pages: AsyncIterator[Any]) -> Sequence[Any]:
    # Not with a default: the iterator of the library fails then.
    try:
        page: Sequence[Any] = await anext(pages)
    except StopAsyncIteration:
        return ()
    except (ValueError, OverflowError) as error:
        # A date that Python does not know.
        raise CallFailed(_cause(error)) from error
    return page


def _seconds(when: datetime) -> float:
    return when.timestamp()


def _store(address: BucketAddress) -> S3Store:
    options: Any = {
        "connect_timeout": f"{address.answer_s:g}s",
        "timeout": f"{_CLIENT_TIMEOUT_S}s",
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


async def _translated(work: Callable[[], Awaitable[T]]) -> T | None:
    """The result of a call; None if the object exists already. Raises CallFailed, or ObjectAbsent."""
    try:
        return await work()
    except AlreadyExistsError:
        return None
    except (BaseError, OSError) as error:
        if _is_about_object(error):
            raise ObjectAbsent(_cause(error)) from error
        raise CallFailed(_cause(error), is_denied=_is_denied(error)) from error


def _is_about_object(error: BaseException) -> bool:
    """Whether an error says that an object, or a range of it, does not exist."""
    text = str(error)
    if isinstance(error, FileNotFoundError):
        return "NoSuchBucket" not in text
    return "416 Range Not Satisfiable" in text


def _is_denied(error: BaseException) -> bool:
    # The error of a list has no type of its own.
    return isinstance(error, _DENIED) or "403 Forbidden" in str(error)


def _cause(error: BaseException) -> str:
    """One line about an error of the library, which repeats itself on the next ones."""
    line = str(error).partition("\n")[0] or type(error).__name__
    return line[-_CAUSE_CHARACTERS:] if len(line) > _CAUSE_CHARACTERS else line
