"""Every fault of an upstream, on every kind of request, held or not: what the client is told.

A held tag is one whose time to live is over, so that upstream has to be asked. Nothing here waits for a time limit of
production: silence ends after a moment.
"""

import asyncio
import copy

import aiohttp
import pytest

from tests.fakehub import (
    AbuseLimited,
    BadContentRange,
    Chunked,
    Corrupt,
    Cut,
    Delay,
    Disconnect,
    ExpiredUrl,
    ForeignRealm,
    Headers,
    HeadWithoutDigest,
    HeadWithoutLength,
    Html,
    HugeBody,
    HugeHeaders,
    IgnoreRange,
    NoHeaders,
    RateLimited,
    Redirect,
    RedirectLoop,
    Reset,
    Rule,
    Slow,
    Stall,
    Status,
    UntilClose,
    WrongLength,
)
from tests.mirror.images import pulled
from tests.support.mirrors import MirrorUnderTest
from tests.support.names import APP
from tests.support.waiting import SOON, eventually

# What a cell says: an answer's status, and its outcome or its code. `ok` is the right content, however it came about.
OK = "ok"
STALE = "200 STALE"
DOWN = "503 UNAVAILABLE"
LIMIT = "503 TOOMANYREQUESTS"
NONE = "404 MANIFEST_UNKNOWN"
NO_BLOB = "404 BLOB_UNKNOWN"
DENIED = "404 NAME_UNKNOWN"
SHORT = "200, short"
NO_LIST = "404 NAME_UNKNOWN"

COLUMNS = ("tag held", "tag new", "digest new", "blob new", "tags new")
# What is held by digest is served whatever upstream does; its columns would be one word.

MATRIX = {
    # fault                                  tag held  tag new  digest   blob     tags
    "refused":           (None,              (STALE,   DOWN,    DOWN,    DOWN,    DOWN)),
    "silent":            (NoHeaders(),       (STALE,   DOWN,    DOWN,    DOWN,    DOWN)),
    "late":              (Delay(0.05),       (OK,      OK,      OK,      OK,      OK)),
    "closed":            (Disconnect(),      (STALE,   DOWN,    DOWN,    DOWN,    DOWN)),
    "reset":             (Disconnect(True),  (STALE,   DOWN,    DOWN,    DOWN,    DOWN)),
    "500":               (Status(500),       (STALE,   DOWN,    DOWN,    DOWN,    DOWN)),
    "502":               (Status(502),       (STALE,   DOWN,    DOWN,    DOWN,    DOWN)),
    "503":               (Status(503),       (STALE,   DOWN,    DOWN,    DOWN,    DOWN)),
    "504":               (Status(504),       (STALE,   DOWN,    DOWN,    DOWN,    DOWN)),
    "429":               (RateLimited(),     (STALE,   LIMIT,   LIMIT,   LIMIT,   LIMIT)),
    "429, a time":       (RateLimited(77),   (STALE,   LIMIT,   LIMIT,   LIMIT,   LIMIT)),
    "429, plain text":   (AbuseLimited(),    (STALE,   LIMIT,   LIMIT,   LIMIT,   LIMIT)),
    "401":               (Status(401),       (DENIED,  DENIED,  DENIED,  DENIED,  DENIED)),
    "403":               (Status(403),       (DENIED,  DENIED,  DENIED,  DENIED,  DENIED)),
    "404":               (Status(404),       (NONE,    NONE,    NONE,    NO_BLOB, NO_LIST)),
    "418":               (Status(418),       (STALE,   DOWN,    DOWN,    DOWN,    DOWN)),
    "204":               (Status(204),       (STALE,   DOWN,    DOWN,    DOWN,    DOWN)),
    "redirect in circle": (RedirectLoop(),   (STALE,   DOWN,    DOWN,    DOWN,    DOWN)),
    "redirect to ftp":   (Redirect("ftp://x/"), (STALE, DOWN,   DOWN,    DOWN,    DOWN)),
    "huge header":       (HugeHeaders(),     (STALE,   DOWN,    DOWN,    DOWN,    DOWN)),
    "lie about digest":  (Headers({"Docker-Content-Digest": "no"}), (STALE, DOWN, OK,  OK,  OK)),
    # Only the header says so: the bytes are those of the digest.
    "encoded":           (Headers({"Content-Encoding": "br"}), (OK,  OK,      OK,      DOWN,    OK)),
    "foreign realm":     (ForeignRealm("http://127.0.0.9/t"), (STALE, DOWN, DOWN, DOWN,   DOWN)),
    "HEAD, no length":   (HeadWithoutLength(), (OK,    OK,      OK,      OK,      OK)),
    "HEAD, no digest":   (HeadWithoutDigest(), (OK,    OK,      OK,      OK,      OK)),
    # Faults of bodies do not touch the HEAD by which a held tag is checked.
    "page":              (Html(),            (STALE,   DOWN,    DOWN,    DOWN,    DOWN)),
    "cut":               (Cut(10),           (OK,      DOWN,    DOWN,    DOWN,    DOWN)),
    "reset in body":     (Reset(10),         (OK,      DOWN,    DOWN,    DOWN,    DOWN)),
    "stall in body":     (Stall(10),         (OK,      DOWN,    DOWN,    DOWN,    DOWN)),
    "slow":              (Slow(1e6),         (OK,      OK,      OK,      OK,      OK)),
    "wrong byte":        (Corrupt(2),        (OK,      DOWN,    DOWN,    DOWN,    DOWN)),
    "length too large":  (WrongLength(9),    (OK,      DOWN,    DOWN,    DOWN,    DOWN)),
    "length too small":  (WrongLength(-9),   (OK,      DOWN,    DOWN,    DOWN,    DOWN)),
    "chunked":           (Chunked(),         (OK,      OK,      OK,      DOWN,    OK)),
    "chunked, endless":  (Chunked(endless=True), (OK,  DOWN,    DOWN,    DOWN,    DOWN)),
    "until close":       (UntilClose(),      (OK,      OK,      OK,      DOWN,    OK)),
    "until close, short": (UntilClose(10),   (OK,      DOWN,    DOWN,    DOWN,    DOWN)),
    "16 MiB":            (HugeBody(16 << 20), (OK,     DOWN,    DOWN,    SHORT,   DOWN)),
}  # fmt: skip

CELLS = [
    pytest.param(fault, column, expected, id=f"{name} - {column}")
    for name, (fault, row) in MATRIX.items()
    for column, expected in zip(COLUMNS, row, strict=True)
]


@pytest.fixture
async def mirror(hub, tmp_path, monkeypatch, request):
    """A mirror with little patience where upstream is silent, and without pauses between its attempts."""
    monkeypatch.setattr("mirror.download.fetcher.backoff", lambda *_, **__: 0.0)
    # Elsewhere a machine that is busy with other things must not be taken for a silent upstream.
    settings = {}
    if isinstance(request.node.callspec.params["fault"], (NoHeaders, Stall)):
        settings = {"downloads": {"stall_timeout": "300ms"}}
        monkeypatch.setattr("mirror.upstream.registry._TIMEOUT_S", 1.0)
    async with MirrorUnderTest(hub, tmp_path / "store", **settings) as under_test:
        yield under_test


async def asked(hub, mirror, clock, column):
    """The path of a column, the content that is right, and the rule for what upstream is asked then."""
    image = await pulled(hub, mirror)
    clock.advance(61)
    other = hub.add_image(APP, "new", layers=[b"new " * 100])
    paths = {
        "tag held": (f"/v2/{APP}/manifests/1", image.raw, "manifest"),
        "tag new": (f"/v2/{APP}/manifests/new", other.raw, "manifest"),
        "digest new": (f"/v2/{APP}/manifests/{other.digest}", other.raw, "manifest"),
        "blob new": (f"/v2/{APP}/blobs/{other.layers[0].digest}", other.layers[0].data, "blob"),
        "tags new": (f"/v2/{APP}/tags/list", None, "tags"),
    }
    path, content, kind = paths[column]
    return path, content, Rule(kind=kind, times=None)


async def told(mirror, path, content):
    """What a cell of the table says of an answer."""
    try:
        async with asyncio.timeout(SOON):
            answer = await mirror.get(path)
    except aiohttp.ClientPayloadError:
        return SHORT
    if answer.status != 200:
        assert answer.status != 503 or int(answer.headers["Retry-After"]) >= 1
        return f"{answer.status} {answer.code()}"
    assert content is None or answer.body == content
    return STALE if answer.cache == "STALE" else OK


@pytest.mark.parametrize(("fault", "column", "expected"), CELLS)
async def test_matrix(hub, mirror, clock, fault, column, expected):
    """The client is told what the table says, and the right content is to be had as soon as the fault is over."""
    hub.redirect_blobs = False
    path, content, rule = await asked(hub, mirror, clock, column)
    if fault is None:
        await hub.stop()
    else:
        if isinstance(fault, ForeignRealm):
            hub.advance(400)
        # Some wait for an event, which belongs to one test's event loop.
        hub.script(rule, copy.deepcopy(fault))
    assert await told(mirror, path, content) == expected
    hub.clear_script()
    await hub.start()
    clock.advance(100)
    await eventually(lambda: told(mirror, path, content), holds=lambda seen: seen == OK)


ONLY_IN_RANGES = [BadContentRange(), IgnoreRange(), ExpiredUrl()]


@pytest.mark.parametrize("fault", ONLY_IN_RANGES, ids=lambda fault: type(fault).__name__)
async def test_faults_of_the_rest_of_a_blob(hub, mirror, fault):
    """Faults that only the request for a blob's rest can meet cost a further attempt, and the client notices nothing."""
    data = b"0123456789abcdef" * 40_000
    digest = hub.add_blob(APP, data)
    hub.script(Rule(host="cdn", method="GET", range=False), Cut(300_000))
    hub.script(Rule(host="cdn", method="GET", range=True), fault)
    assert (await mirror.get(f"/v2/{APP}/blobs/{digest}")).body == data


@pytest.mark.parametrize("fault", [NoHeaders(), Status(500), RateLimited(), Disconnect(), Status(404), Status(403), Html()])
async def test_held_by_digest(hub, mirror, clock, fault):
    """What is held by its digest, manifest or blob, is served whatever upstream does, which is not even asked."""
    image = await pulled(hub, mirror)
    mirror.store.generation.change()
    clock.advance(10 * 365 * 86400)
    hub.script(Rule(times=None, challenge=True), copy.deepcopy(fault))
    hub.reset_counters()
    assert (await mirror.get(f"/v2/{APP}/manifests/{image.digest}")).body == image.raw
    for blob in [image.config, *image.layers]:
        assert (await mirror.get(f"/v2/{APP}/blobs/{blob.digest}")).body == blob.data
    assert hub.count() == 0
