"""The status page in a real browser: on a desktop and a phone, with scripts and without, signed in and attacked."""

import asyncio
import html
import json
import os
import tempfile
from pathlib import Path
from urllib.parse import quote

import pytest
from aiohttp import web

from tests.e2e.harness.chromium import Chromium
from tests.fakehub import Rule, Status
from tests.mirror.images import pulled
from tests.support.mirrors import MirrorUnderTest
from tests.support.names import APP, TAG
from tests.support.waiting import LIMIT, eventually

pytestmark = pytest.mark.e2e

DESKTOP, PHONE = (1280, 900), (360, 780)
IMAGE = f"docker.io/{APP}:1"
LONG = "a" * 100
PAGES = (
    "/", "/?window=1h", "/images", "/images?q=app&sort=size", f"/image?name={IMAGE}", f"/purge?match={IMAGE}",
    "/purge?match=none", "/sync", "/job?name=none", f"/images?q={LONG}", f"/image?name={LONG}/{LONG}:{LONG}",
)  # fmt: skip
HOSTILE = "\"'><script>document.title = 'harmed'; alert(1)</script><img src=x onerror=alert(2)>"


@pytest.fixture
async def browser():
    # A short path, because of the limit on those of sockets. The last of its processes may still write when it is removed.
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as name:
        async with Chromium(Path(name)) as running:
            yield running


@pytest.fixture
async def mirrored(hub, tmp_path):
    """A mirror without a token."""
    async with MirrorUnderTest(hub, tmp_path / "store") as mirror:
        yield mirror


@pytest.fixture
async def secured(hub, tmp_path):
    """A mirror with a token, and an image."""
    (tmp_path / "token").write_text("s3cret")
    async with MirrorUnderTest(hub, tmp_path / "store", admin={"token_file": str(tmp_path / "token")}) as mirror:
        mirror.image = await pulled(hub, mirror)
        yield mirror


def address(mirror, path="/"):
    return f"http://127.0.0.1:{mirror.admin_port}{path}"


async def some_trouble(hub, mirror):
    """An image with long names, failures of pulls, and traffic in the charts."""
    await pulled(hub, mirror, layers=[os.urandom(200_000)])
    await mirror.get(TAG)
    hub.script(Rule(kind="manifest", times=None), Status(503))
    for name in ("new", f"{LONG}/{LONG}"):
        assert (await mirror.get(f"/v2/library/{name}/manifests/{LONG}")).status == 503


async def test_pages_fit(hub, mirrored, browser):
    """No page is wider than the window, in both schemes; nothing comes from elsewhere, and the browser has no complaint."""
    await some_trouble(hub, mirrored)
    for size in (DESKTOP, PHONE):
        tab = await browser.tab(*size)
        for scheme in ("light", "dark"):
            await tab.colors(scheme)
            for path in PAGES if scheme == "light" else PAGES[:1]:
                await tab.open(address(mirrored, path))
                assert await tab.overflow() <= 0, (size, path)
        assert {url.split("/")[2] for url in tab.requested if not url.startswith("about:")} == {
            f"127.0.0.1:{mirrored.admin_port}"
        }
        # The browser logs answers with an error, which some of these pages are.
        assert [line for line in tab.complaints if "status of 404" not in line and "status of 400" not in line] == []


async def test_without_scripts_and_without_a_token(hub, mirrored, browser):
    """Reading, searching, paging and purging need no script."""
    image = await pulled(hub, mirrored)
    tab = await browser.tab(*PHONE, scripts=False)
    await tab.open(address(mirrored))
    assert "Refresh" in await tab.html("noscript")
    await tab.click('nav a[href="/images"]')
    await tab.type("#q", "lib")
    await tab.click(".search button")
    assert await tab.evaluate("location.search") == "?q=lib&sort=name"
    await tab.click(f'a.danger[href="/purge?match={quote(IMAGE, safe="")}"]')
    assert mirrored.holds(image.digest)
    await tab.click("button.danger")
    assert "Removed 1 tag" in await tab.html(".notice")
    assert not mirrored.holds(image.digest)
    assert tab.complaints == []


async def test_signing_in_and_purging(secured, browser):
    """The page asks for the token, keeps it out of reach of scripts, purges, and forgets."""
    tab = await browser.tab(*DESKTOP)
    await tab.open(address(secured, f"/purge?match={IMAGE}"))
    assert await tab.evaluate("document.activeElement.id") == "token"
    await tab.type("#token", "wr0ng")
    await tab.click("form button")
    assert "not the admin token" in await tab.html(".notice")
    await tab.type("#token", "s3cret")
    await tab.click("form button")
    assert IMAGE in await tab.html(".names")
    (cookie,) = await tab.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"], "s3cret" in cookie["value"]) == (True, "Strict", False)
    assert await tab.evaluate("document.cookie") == ""
    await tab.click("button.danger")
    assert not secured.holds(secured.image.digest)
    await tab.click(".sign-out button")
    await tab.open(address(secured))
    assert await tab.evaluate("location.pathname") == "/sign-in"
    assert [line for line in tab.complaints if "status of 403" not in line] == []


async def test_the_overview_is_live(hub, secured, browser):
    """A download appears and ends without a reload; what somebody has selected stays; a mirror that is gone is told."""
    tab = await browser.tab(*DESKTOP)
    # It looks each five seconds.
    faster = "((real) => { window.setTimeout = (work, pause) => real(work, pause / 10); })(setTimeout)"
    await tab.send("Page.addScriptToEvaluateOnNewDocument", source=faster)
    await tab.open(address(secured))
    await tab.type("#token", "s3cret")
    await tab.click("form button")
    await tab.evaluate("window.loaded = 'once'; getSelection().selectAllChildren(document.querySelector('#as-of'))")
    selected = await tab.html("#as-of")
    blob = hub.add_synthetic_blob(APP, 500_000)
    gate = hub.gate(Rule(kind="blob", host="cdn"), after=200_000)
    pull = asyncio.create_task(secured.get(f"/v2/{APP}/blobs/{blob.digest}"))
    await asyncio.wait_for(gate.reached.wait(), LIMIT)
    await eventually(lambda: tab.html("#downloads"), holds=lambda shown: blob.digest in shown)
    gate.release()
    await pull
    await eventually(lambda: tab.html("#downloads"), holds=lambda shown: "Nothing is being fetched" in shown)
    assert await tab.evaluate("window.loaded") == "once"
    assert await tab.html("#as-of") == selected
    assert tab.complaints == []
    secured.stop()
    await secured.stopped()
    await eventually(lambda: tab.html("#live"), holds=lambda shown: "does not answer" in shown)


async def test_hostile_words_do_no_harm(hub, mirrored, browser):
    """Words of a manifest, of a query and of an error are shown, and nothing of them runs."""
    kind = f"application/x{HOSTILE}"
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": kind, "digest": hub.add_blob(APP, b"blob"), "size": 4},
        "layers": [],
    }
    hub.add_manifest(APP, json.dumps(manifest).encode(), manifest["mediaType"], "1")
    assert (await mirrored.get(TAG)).status == 200
    tab = await browser.tab(*PHONE)
    query = quote(HOSTILE)
    for path in (
        f"/image?name={IMAGE}",
        f"/images?q={query}",
        f"/image?name={query}",
        f"/purge?match={query}",
        f"/sync?image={query}",
    ):
        await tab.open(address(mirrored, path))
        assert "alert(1)" in html.unescape(await tab.html("body"))
        assert await tab.evaluate("document.title") != "harmed"
        assert not await tab.has("main script, main img")
        assert await tab.overflow() <= 0
    assert [line for line in tab.complaints if "status of 400" not in line] == []


async def test_the_policy_holds(mirrored, browser):
    """A script that got into the page all the same would not run: the browser refuses it, and says so."""
    tab = await browser.tab(*DESKTOP)
    await tab.open(address(mirrored))
    for harm in (
        "const s = document.createElement('script'); s.textContent = 'window.harmed = 1'; document.body.append(s)",
        "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.harmed = 1\">')",
        "document.body.insertAdjacentHTML('beforeend', '<p style=\"color: red\">')",
    ):
        seen = len(tab.complaints)
        await tab.evaluate(f"{harm}; 0")
        await eventually(lambda seen=seen: "Content Security Policy" in str(tab.complaints[seen:]), "a complaint")
    assert await tab.evaluate("window.harmed") is None


async def test_another_page_changes_nothing(hub, mirrored, browser):
    """A page of another port, to which the browser sends the cookie, can neither send the forms nor show them in a frame."""
    image = await pulled(hub, mirrored)
    tab = await browser.tab(*DESKTOP)
    await tab.open(address(mirrored))
    attack = f"""
        <form method=post action="{address(mirrored, "/purge")}"><input name=match value="{IMAGE}"><button>Win</button></form>
        <iframe src="{address(mirrored, f"/purge?match={IMAGE}")}"></iframe>"""
    application = web.Application()

    async def page(_):
        return web.Response(text=attack, content_type="text/html")

    application.router.add_get("/", page)
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        await tab.open(f"http://127.0.0.1:{runner.addresses[0][1]}/")
        await eventually(lambda: "frame" in str(tab.complaints).lower(), "a refused frame")
        await tab.click("button")
        assert "another origin" in await tab.html("main")
    finally:
        await runner.cleanup()
    assert mirrored.holds(image.digest)
