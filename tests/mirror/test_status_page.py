"""The status page: what it shows is what the API says, and whose forms it obeys."""

import asyncio
import dataclasses
import html
import json
import os
import re
from html.parser import HTMLParser

import pytest

from mirror.admin.page import render as rendering
from mirror.admin.page.frame import HEADERS
from mirror.core.digest import Digest
from mirror.core.names import Repository, Tag
from mirror.storage.images import Image
from tests.fakehub import Rule, Status
from tests.mirror.images import pulled
from tests.support.browser import FORM, Browser, hidden_fields
from tests.support.mirrors import SHARED, MirrorUnderTest
from tests.support.names import APP, TAG
from tests.support.waiting import eventually

IMAGE = f"docker.io/{APP}:1"
PAGES = (
    "/", "/?window=1h", "/?window=7d", "/?window=nonsense", "/images", "/images?q=app&sort=size&page=2", f"/image?name={IMAGE}",
    "/image?name=library/none:1", f"/purge?match={IMAGE}", "/purge?match=none", "/sync", f"/sync?image={IMAGE}",
    f"/release?image={IMAGE}",
)  # fmt: skip


@pytest.fixture
def browser(mirror):
    return Browser(mirror)


@pytest.fixture
async def secured(hub, tmp_path):
    """A mirror whose admin address wants a token, with an image."""
    (tmp_path / "token").write_text("s3cret\n")
    async with MirrorUnderTest(hub, tmp_path / "store", admin={"token_file": str(tmp_path / "token")}) as mirror:
        mirror.image = await pulled(hub, mirror)
        yield mirror


async def signed_in(mirror):
    browser = Browser(mirror)
    assert (await browser.send("/sign-in", {"token": "s3cret"})).status == 303
    return browser


def text_of(answer):
    """The words of a page."""
    return html.unescape(" ".join(re.sub(r"<[^>]*>", " ", answer.body.decode()).split()))


async def api(mirror, path, **headers):
    async with mirror.session.get(f"http://127.0.0.1:{mirror.admin_port}{path}", headers=headers) as response:
        return response.status, await response.json()


# ---- what it shows


@pytest.mark.parametrize("path", PAGES)
async def test_every_page(hub, mirror, browser, quiet, path):
    """Answers with nothing held, and with an image; loads nothing from elsewhere, and has no script or style in it."""
    for held in (False, True):
        if held:
            await pulled(hub, mirror)
        answer = await browser.get(path)
        assert (answer.status, answer.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
        assert {name: answer.headers[name] for name in HEADERS} == HEADERS
        page = answer.body.decode()
        assert re.findall(r'(?:src|href|action)="([^"]*)"', page)
        assert [link for link in re.findall(r'(?:src|href|action)="([^"]*)"', page) if link[0] not in "/#"] == []
        assert re.findall(r"<script(?![^>]*src=)|<style|\sstyle=|\son[a-z]+=", page) == []
    quiet()


@SHARED
@pytest.mark.parametrize(
    ("path", "status"),
    [("/image", 400), ("/image?name=%20", 400), ("/image?name=UPPER", 400), ("/image?name=other.example/x:1", 404),
     ("/purge", 400), ("/purge?match=a%3A%3Ab", 400), ("/release", 400), ("/release?image=UPPER", 400),
     ("/job?name=none", 404), ("/job", 404), ("/static/other", 404),
     ("/static/../api.py", 404), ("/image?name=" + "a" * 5000, 400), ("/images?page=99999999999999999999", 200),
     ("/images?q=" + "[" * 2000, 200)],
)  # fmt: skip
async def test_mistakes(shared_mirror, path, status):
    """A mistake is a page that says what is wrong, or the nearest page that exists."""
    answer = await Browser(shared_mirror).get(path)
    assert answer.status == status
    if status != 200 and not path.startswith("/static/"):
        assert answer.headers["Content-Security-Policy"]
        assert "Back to the overview" in text_of(answer)


@SHARED
@pytest.mark.parametrize(
    ("name", "kind"), [("page.css", "text/css"), ("page.js", "text/javascript"), ("icon.svg", "image/svg+xml")]
)
async def test_files(shared_mirror, name, kind):
    """The files that pages load, at an address that changes with their content."""
    page = (await Browser(shared_mirror).get("/")).body.decode()
    (path,) = re.findall(rf'"(/static/{re.escape(name)}\?v=[0-9a-f]{{12}})"', page)
    answer = await Browser(shared_mirror).get(path)
    assert (answer.status, answer.headers["Content-Type"].partition(";")[0]) == (200, kind)
    assert "max-age" in answer.headers["Cache-Control"]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


async def test_figures_are_those_of_status_and_metrics(hub, mirror, browser):
    """One source: the page has the numbers of the API, and those of the metrics."""
    hub.ratelimit_limit, hub.ratelimit_remaining = 100, 70
    image = await pulled(hub, mirror, layers=[os.urandom(300_000)])
    for _ in range(3):
        await mirror.get(f"/v2/{APP}/blobs/{image.layers[0].digest}")
    answer = await browser.get("/")
    _, found = await api(mirror, "/api/v1/status")
    requests, words = found["requests"], text_of(answer)
    assert f"{requests['hits']} of {requests['pulls']} manifests and blobs" in words
    assert await mirror.metric("requests_total", kind="blob", outcome="HIT") == 3
    assert f"{rendering._bytes(requests['served_bytes'])} to clients".replace("\xa0", " ") in words
    assert f"{found['upstreams'][0]['pulls_left']} of 100" in words
    assert f"{found['store']['blobs']} blobs" in words
    # The chart has the same pulls.
    assert f"{rendering._percent(requests['hit_ratio'])} of {requests['pulls']} pulls" in words


async def test_downloads(hub, mirror, browser):
    """A download is there with its image, its progress and its readers while it is under way."""
    image = hub.add_image(APP, "1", layers=[os.urandom(200_000)])
    await mirror.get(TAG)
    gate = hub.gate(Rule(kind="blob"), 100_000)
    pull = asyncio.create_task(mirror.get(f"/v2/{APP}/blobs/{image.layers[0].digest}"))
    await eventually(lambda: mirror.downloads.readers == 1)

    async def shown():
        return text_of(await browser.get("/"))

    words = await eventually(shown, holds=lambda words: re.search(r"[1-9][0-9]? % of 195.3", words))
    assert f"Image Progress Speed Readers Clients {IMAGE} sha256:" in words
    await eventually(shown, holds=lambda words: re.search(r"[0-9] (B|KiB)/s 1 127.0.0.1 Upstreams", words))
    gate.release()
    await pull
    await mirror.idle()
    await eventually(shown, holds=lambda words: "Nothing is being fetched." in words)


async def test_an_outage(hub, mirror, browser, clock):
    """An upstream that is down is the first thing on the page; what failed is named with its cause."""
    await pulled(hub, mirror)
    clock.advance(61)
    hub.script(Rule(kind="manifest", times=None), Status(503))
    assert (await mirror.get(TAG)).cache == "STALE"
    assert (await mirror.get("/v2/library/new/manifests/1")).status == 503
    words = text_of(await browser.get("/"))
    assert words.index(" problem") < words.index("Hit ratio")
    assert "docker.io/library/new:1 ERROR" in words
    assert f"{IMAGE} STALE" in words
    assert "Down" in words


async def test_history_outlives_a_restart(hub, tmp_path):
    """What was counted before is in the charts, and the figures since the start begin anew."""
    async with MirrorUnderTest(hub, tmp_path / "store") as mirror:
        mirror.begin_earlier(minutes=5)
        image = await pulled(hub, mirror)
        blobs = 1 + len({image.config.digest, *(layer.digest for layer in image.layers)})
    async with MirrorUnderTest(hub, tmp_path / "store") as mirror:
        words = text_of(await Browser(mirror).get("/?window=24h"))
        assert "No pull since the start" in words
        assert re.search(rf"0 % of {blobs} pulls", words), words


async def test_images_of_a_large_store(mirror, browser, monkeypatch):
    """Ten thousand images are pages of fifty, each of which is small."""
    digest = Digest.of(b"x")
    held = [
        Image(
            Repository.parse("docker.io", f"team{number // 100}/app{number}"), Tag.parse("1"), digest, number, 1.0 + number, True
        )
        for number in range(10_000)
    ]
    monkeypatch.setattr(mirror.mirror._operations, "images", lambda pattern: held)
    answer = await browser.get("/images?sort=size&page=200")
    assert len(answer.body) < 60_000
    assert "10,000 images" in text_of(answer)
    assert "Page 200 of 200" in text_of(answer)
    assert text_of(await browser.get("/images?q=app9999")).count("docker.io/team99/app9999:1") == 1


async def test_sync_from_the_page(hub, mirror, browser):
    """The order is one like any other; its page follows it to its end."""
    await pulled(hub, mirror)
    confirmation = await browser.get(f"/sync?image={IMAGE}")
    answer = await browser.fill(confirmation, "/sync")
    assert (answer.status, answer.headers["Location"][:10]) == (303, "/job?name=")

    async def shown():
        return (await browser.get(answer.headers["Location"])).body.decode()

    page = await eventually(shown, holds=lambda page: "completed" in page)
    assert "data-ended" in page
    assert "1 unchanged" in text_of(await browser.get(answer.headers["Location"]))
    assert "completed" in text_of(await browser.get("/"))
    assert (await browser.fill(confirmation, "/sync", image="a::b")).status == 400


# ---- whose forms it obeys


async def test_purge_without_a_token(hub, mirror, browser, log):
    """The page names what goes, removes it after a confirmation, and leaves one line in the log."""
    image = await pulled(hub, mirror)
    confirmation = await browser.get(f"/purge?match={IMAGE}")
    assert IMAGE in text_of(confirmation)
    assert mirror.holds(image.digest)
    answer = await browser.fill(confirmation, "/purge", how="hard")
    assert answer.status == 200
    assert "Removed 1 tag, 1 manifest" in text_of(answer)
    assert not mirror.holds(image.digest)
    assert IMAGE not in text_of(await browser.get("/images"))
    (line,) = (event for event in log if event["event"] == "audit" and event["action"] == "purge")
    assert (line["match"], line["images"], line["dry_run"], line["client"]) == (IMAGE, [IMAGE], False, "127.0.0.1")


async def test_soft_purge(hub, mirror, browser):
    """Keeps the image, and has it checked."""
    image = await pulled(hub, mirror)
    answer = await browser.fill(await browser.get(f"/purge?match={IMAGE}"), "/purge", how="soft")
    assert "will be checked" in text_of(answer)
    assert mirror.holds(image.digest)
    assert (await mirror.get(TAG)).cache == "REVALIDATED"


async def test_what_is_confirmed_is_what_goes(hub, mirror, browser):
    """If more matches than the page has named, nothing goes, and the page names it anew."""
    image = await pulled(hub, mirror)
    confirmation = await browser.get("/purge?match=library/*")
    hub.add_image("library/other", "1")
    await mirror.get("/v2/library/other/manifests/1")
    answer = await browser.fill(confirmation, "/purge", how="hard")
    assert "has changed" in text_of(answer)
    assert mirror.holds(image.digest)
    answer = await browser.fill(answer, "/purge", how="hard")
    assert "Removed 2 tags" in text_of(answer)
    assert not mirror.holds(image.digest)


CROSS_SITE = {
    "origin": {"Origin": "http://evil.example"},
    "no origin to be named": {"Origin": "null"},
    "cross-site": {"Sec-Fetch-Site": "cross-site"},
    "same-site": {"Sec-Fetch-Site": "same-site"},
}


@pytest.mark.parametrize("headers", CROSS_SITE.values(), ids=CROSS_SITE)
@pytest.mark.parametrize("token", [False, True], ids=["no token", "token"])
async def test_another_site_changes_nothing(hub, tmp_path, headers, token):
    """Not even with the cookie and the value of the form, with a token and without."""
    (tmp_path / "token").write_text("s3cret")
    admin = {"token_file": str(tmp_path / "token")} if token else {}
    async with MirrorUnderTest(hub, tmp_path / "store", admin={"listen": "127.0.0.1:0", **admin}) as mirror:
        image = await pulled(hub, mirror)
        browser = await signed_in(mirror) if token else Browser(mirror)
        fields = hidden_fields(await browser.get(f"/purge?match={IMAGE}"))
        for path in ("/purge", "/sync", "/sign-out"):
            assert (await browser.send(path, fields, **headers)).status == 403
        assert (await browser.send("/sign-in", {"token": "s3cret"}, **headers)).status == 403
        assert mirror.holds(image.digest)
        assert (await browser.send("/purge", fields, Origin=f"http://127.0.0.1:{mirror.admin_port}")).status == 200
        assert not mirror.holds(image.digest)


@pytest.mark.parametrize(
    "change", ["no value", "wrong value", "no cookie", "another session", "json", "text", "too long", "no form"]
)
async def test_a_form_that_is_not_ours(hub, mirror, browser, change):
    """Each part of a form has to be right."""
    image = await pulled(hub, mirror)
    fields, headers, status = hidden_fields(await browser.get(f"/purge?match={IMAGE}")), FORM, 403
    match change:
        case "no value":
            del fields["form"]
        case "wrong value":
            fields["form"] = "\N{SNOWMAN}" + fields["form"][1:]
        case "no cookie":
            browser.cookie = ""
        case "another session":
            browser.cookie = ""
            await browser.get("/")
        case "json" | "text":
            headers, status = {"Content-Type": "application/json" if change == "json" else "text/plain"}, 415
        case "too long":
            fields["more"], status = "x" * 70_000, 413
        case "no form":
            fields, status = dict.fromkeys(map(str, range(30)), "x"), 400
    body = "&".join(f"{name}={value}" for name, value in fields.items()).encode()
    answer = await browser.request("POST", "/purge", headers, body)
    assert answer.status == status
    assert mirror.holds(image.digest)


# ---- signing in


@pytest.mark.parametrize("path", [*PAGES, "/job?name=x"])
async def test_nothing_is_shown_without_signing_in(secured, path):
    """A page leads to the form, which leads back; not a word of it is shown before."""
    browser = Browser(secured)
    answer = await browser.get(path)
    assert (answer.status, answer.body, browser.set_cookie) == (303, b"", "")
    form = await browser.get(answer.headers["Location"])
    assert (form.status, IMAGE in text_of(form)) == (200, False)
    signed = await browser.fill(form, "/sign-in", token="s3cret")
    assert (signed.status, signed.headers["Location"]) == (303, path)
    assert (await browser.get(path)).status in (200, 404)


async def test_the_cookie(secured):
    """Hidden from scripts, for this site only, for some hours, over TLS where the browser uses that; and not the token."""
    browser = Browser(secured)
    port = secured.admin_port
    await browser.send("/sign-in", {"token": " s3cret "}, Origin=f"http://127.0.0.1:{port}")
    attributes = {part.strip().lower() for part in browser.set_cookie.split(";")[1:]}
    assert attributes == {"httponly", "samesite=strict", "path=/", "max-age=43200"}
    assert "s3cret" not in browser.set_cookie
    await browser.send("/sign-in", {"token": "s3cret"}, Origin=f"https://127.0.0.1:{port}")
    assert "secure" in browser.set_cookie.lower()


async def test_mirrors_of_one_host_have_cookies_of_their_own(hub, mirror, browser):
    """A browser sends the cookies of one port to all ports, so that forwarded mirrors would end each other's sessions."""
    first = (await browser.get("/", Host="localhost:5001")) and browser.set_cookie.partition("=")[0]
    second = (await browser.get("/", Host="localhost:6001")) and browser.set_cookie.partition("=")[0]
    assert (first, second) == ("registry-mirror-session-5001", "registry-mirror-session-6001")
    for host in ("localhost", "[::1]", ""):
        browser.cookie = ""
        await browser.get("/", Host=host)
        assert browser.set_cookie.partition("=")[0] == "registry-mirror-session"


async def test_the_cookie_opens_pages_only(secured):
    """The API wants the token: no form can reach it. Scripts may read pages with the token."""
    browser = await signed_in(secured)
    assert (await browser.get("/api/v1/images")).status == 401
    body = json.dumps({"match": IMAGE}).encode()
    assert (await browser.request("POST", "/api/v1/purge", {"Content-Type": "application/json"}, body)).status == 401
    assert secured.holds(secured.image.digest)
    answer = await Browser(secured).get("/", Authorization="Bearer s3cret")
    assert (answer.status, "Set-Cookie" in answer.headers) == (200, False)
    assert (await Browser(secured).get("/", Authorization="Bearer wrong")).status == 303


async def test_purge_with_a_token(secured, log):
    """Signed in, a form purges; signed out, or never signed in, it does not."""
    browser = await signed_in(secured)
    confirmation = await browser.get(f"/purge?match={IMAGE}")
    stranger = Browser(secured)
    assert (await stranger.fill(confirmation, "/purge")).status == 303
    assert secured.holds(secured.image.digest)
    assert (await browser.fill(confirmation, "/purge")).status == 200
    assert not secured.holds(secured.image.digest)
    assert [event["action"] for event in log if event["event"] == "audit"] == ["sign_in", "purge"]
    out = await browser.fill(confirmation, "/sign-out")
    assert (out.status, browser.cookie) == (303, "")
    assert (await browser.get("/")).status == 303


async def test_another_token_ends_sessions(secured, tmp_path):
    """A session lasts until the token changes; that it is read again changes nothing."""
    browser = await signed_in(secured)
    await secured.reload()
    assert (await browser.get("/")).status == 200
    (tmp_path / "token").write_text("an0ther")
    await secured.reload()
    assert (await browser.get("/")).status == 303
    assert (await browser.send("/sign-in", {"token": "s3cret"})).status == 403
    assert (await browser.send("/sign-in", {"token": "an0ther"})).status == 303


async def test_guesses_are_limited(secured, log, monkeypatch):
    """After five wrong tokens even the right one has to wait; the API is as before, and the log has no token."""
    # However long the attempts take.
    monkeypatch.setattr("mirror.admin.page.attempts._INTERVAL_S", 1000.0)
    browser = Browser(secured)
    for number in range(5):
        assert (await browser.send("/sign-in", {"token": f"gu3ss-{number}"})).status == 403
    answer = await browser.send("/sign-in", {"token": "s3cret"})
    assert (answer.status, browser.set_cookie) == (429, "")
    assert 1 <= int(answer.headers["Retry-After"]) <= 1001
    assert (await api(secured, "/api/v1/images", Authorization="Bearer s3cret"))[0] == 200
    assert "gu3ss" not in str(log)
    assert {event["why"] for event in log if event["event"] == "audit"} == {"a wrong token", "too many wrong tokens"}


@pytest.mark.parametrize(
    "following",
    ["https://evil.example/", "//evil.example", "/\\evil.example", "\\\\evil.example", "javascript:alert(1)", "http:/images",
     "/api/v1/status", "/images\r\nX: y", "///evil.example/images", "/sign-in@evil.example", "http://[", "", "/metrics"],
)  # fmt: skip
async def test_signing_in_leads_to_this_address_only(secured, following):
    """What a link to the form names is followed only if it is one of the pages."""
    answer = await Browser(secured).send("/sign-in", {"token": "s3cret", "next": following})
    assert (answer.status, answer.headers["Location"]) == (303, "/")
    assert "X" not in answer.headers


# ---- hostile words

HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>{{7*7}}&amp;\x00\x1b\u202e"
# Values that the templates compare; none of them is a client's or an upstream's.
WORDS = {"held", "outcome", "kind", "name", "path", "form_value", "version", "key", "window", "order", "state"}


class Elements(HTMLParser):
    """The elements and attributes of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes = [], set()
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attributes}


def poisoned(value, key=""):
    """The same value with hostile words in every text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: poisoned(getattr(value, field.name), field.name) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **fields)
    match value:
        case str():
            return value if key in WORDS else value + HOSTILE
        case dict():
            return {name: poisoned(entry, name) for name, entry in value.items()}
        case list() | tuple():
            return type(value)(poisoned(entry, key) for entry in value)
    return value


@pytest.mark.parametrize("path", PAGES)
async def test_hostile_words_are_words(hub, mirror, browser, monkeypatch, path):
    """Whatever a client, an upstream or an error can put into a page is text there, in every place."""
    await pulled(hub, mirror)
    hub.script(Rule(kind="manifest", times=None), Status(503))
    await mirror.get("/v2/library/new/manifests/1")
    clean = (await browser.get(path)).body.decode()
    render = rendering.render
    monkeypatch.setattr("mirror.admin.page.frame.render", lambda template, values: render(template, poisoned(values)))
    hostile = (await browser.get(path)).body.decode()
    if "images?" not in path and "none" not in path and path != "/sync":
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in hostile
        assert "{{7*7}}&amp;amp;" in hostile
    assert Elements(hostile).attributes <= Elements(clean).attributes | {"aria-current", "title"}
    assert Elements(hostile).tags.count("script") == Elements(clean).tags.count("script") == 1
    assert "img" not in Elements(hostile).tags


@SHARED
@pytest.mark.parametrize(
    "where", ["/images?q={}", "/image?name={}", "/purge?match={}", "/sync?image={}", "/job?name={}", "/?window={}",
              "/images?sort={}", "/images?page={}", "/sign-in?next={}"],
)  # fmt: skip
async def test_hostile_queries(shared_mirror, where):
    """What a link puts into a page is text there."""
    from urllib.parse import quote

    answer = await Browser(shared_mirror).get(where.format(quote(HOSTILE)))
    assert answer.status in (200, 303, 400, 404)
    assert b"<script>alert" not in answer.body
    assert b"<img" not in answer.body


async def test_hostile_upstream(hub, mirror, browser):
    """The words of a manifest: platforms and media types of its blobs."""
    kind = 'application/vnd.x"><script>alert(1)</script>'
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": kind, "digest": hub.add_blob(APP, b"blob"), "size": 4},
        "layers": [],
    }
    hub.add_manifest(APP, json.dumps(manifest).encode(), manifest["mediaType"], "1")
    assert (await mirror.get(TAG)).status == 200
    page = (await browser.get(f"/image?name={IMAGE}")).body.decode()
    assert html.escape(kind, quote=False).replace('"', "&#34;") in page
    assert "<script>alert" not in page
