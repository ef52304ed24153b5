"""Lists: tags and referrers are upstream's, the catalog is what is cached."""

import asyncio
import json
import threading

import pytest

from mirror.cache.upstream_tags import every_tag
from mirror.core.names import Repository
from tests.fakehub import OCI_INDEX, Html, RateLimited, Rule, Status
from tests.support.mirrors import MirrorUnderTest
from tests.support.names import APP
from tests.support.wire import Wire

TAGS = f"/v2/{APP}/tags/list"


def next_page(answer):
    """Where the answer's Link leads, or None."""
    link = answer.headers.get("Link")
    if link is None:
        return None
    target, _, relation = link.partition(">; ")
    assert relation == 'rel="next"'
    return target.removeprefix("<")


async def all_pages(mirror, path, key):
    """The entries of all pages, and the number of pages."""
    entries, pages = [], 0
    while path is not None:
        assert path.startswith("/")
        answer = await mirror.get(path)
        assert answer.status == 200
        entries += json.loads(answer.body)[key]
        pages += 1
        assert pages < 20, "the pages do not end"
        path = next_page(answer)
    return entries, pages


@pytest.mark.parametrize("absolute", [False, True])
async def test_pages_of_tags(hub, mirror, absolute):
    """Links lead back to the mirror, whichever form upstream's have, and all tags come in order."""
    for number in range(7):
        hub.add_image(APP, f"t{number}")
    hub.absolute_links = absolute
    tags, pages = await all_pages(mirror, f"{TAGS}?n=3", "tags")
    assert (tags, pages) == ([f"t{number}" for number in range(7)], 3)


@pytest.mark.parametrize(
    "path", [f"/v2/{APP}/tags/list", "/v2/app/tags/list", f"/v2/docker.io/{APP}/tags/list", f"/docker.io/v2/{APP}/tags/list"]
)
async def test_links_keep_the_clients_form(hub, mirror, path):
    """A link repeats the path as the client wrote it."""
    for number in range(3):
        hub.add_image(APP, f"t{number}")
    answer = await mirror.get(f"{path}?n=2")
    assert next_page(answer).partition("?")[0] == path
    assert (await all_pages(mirror, f"{path}?n=2", "tags"))[0] == ["t0", "t1", "t2"]


async def test_links_keep_the_namespace(hub, mirror):
    """A link keeps `ns`, without which the next page would be another registry's."""
    for number in range(3):
        hub.add_image(APP, f"t{number}")
    answer = await mirror.get(f"{TAGS}?n=2&ns=docker.io")
    assert "ns=docker.io" in next_page(answer)
    assert (await all_pages(mirror, f"{TAGS}?n=2&ns=docker.io", "tags"))[0] == ["t0", "t1", "t2"]


async def test_opaque_pages(hub, mirror):
    """Links whose query only upstream understands lead on, to every page once, for tags as for referrers."""
    image = hub.add_image(APP, "t0")
    for number in range(1, 7):
        hub.add_image(APP, f"t{number}")
        hub.add_referrer(APP, image.digest, payload=str(number).encode())
    hub.opaque_links, hub.page_size = True, 3
    tags, pages = await all_pages(mirror, f"{TAGS}?ns=docker.io", "tags")
    assert (tags, pages) == ([f"t{number}" for number in range(7)], 3)
    found, pages = await all_pages(mirror, f"/v2/{APP}/referrers/{image.digest}", "manifests")
    assert (len({entry["digest"] for entry in found}), len(found), pages) == (6, 6, 2)


async def test_opaque_pages_are_kept_each(hub, mirror):
    """Pages come from memory as pages, in whatever order they are asked for, and upstream is asked once for each."""
    for number in range(4):
        hub.add_image(APP, f"t{number}")
    hub.opaque_links, hub.page_size = True, 2
    first = await all_pages(mirror, TAGS, "tags")
    hub.reset_counters()
    second = next_page(await mirror.get(TAGS))
    assert json.loads((await mirror.get(second)).body)["tags"] == ["t2", "t3"]
    assert await all_pages(mirror, TAGS, "tags") == first
    assert hub.count() == 0


async def test_opaque_pages_of_every_tag(hub, mirror):
    """Who wants all tags of a repository gets those behind opaque links, too."""
    for number in range(5):
        hub.add_image(APP, f"t{number}")
    hub.opaque_links, hub.page_size = True, 2
    registry = mirror.registry()
    assert await every_tag(registry, Repository.parse("docker.io", APP)) == [f"t{number}" for number in range(5)]


@pytest.mark.parametrize("page", ["a b", "a#b", "%zz", 'a"', "a\r\nX: y", "ü", "x" * 3000, ""])
async def test_page_that_no_link_led_to(hub, mirror, page):
    """What cannot be a page's name is the client's mistake, and does not go upstream."""
    hub.add_image(APP, "1")
    answer = await mirror.get(TAGS, params={"page": page})
    assert (answer.status, answer.code()) == (400, "PAGINATION_NUMBER_INVALID")
    assert hub.count() == 0


@pytest.mark.parametrize("target", ["", "?n=2", "?x=" + "y" * 3000, "?n=2&n=3&last=%zz"])
async def test_link_that_leads_nowhere(hub, mirror, target):
    """A link that would send clients round in a circle, or that is too long to be given to them, makes the list unusable."""
    hub.add_image(APP, "1")
    body = b'{"name": "library/app", "tags": ["1"]}'
    link = {"Link": f'</v2/{APP}/tags/list{target}>; rel="next"'}
    hub.script(Rule(kind="tags", times=None), Status(200, link, body))
    answer = await mirror.get(f"{TAGS}?n=2")
    if "%zz" in target:
        assert next_page(answer) == f"{TAGS}?page=n%3D2%26n%3D3%26last%3D%2525zz"
    else:
        assert (answer.status, answer.code()) == (503, "UNAVAILABLE")


async def test_client_parameters_do_not_go_upstream(hub, mirror):
    """Only what the specification names is passed on upstream."""
    hub.add_image(APP, "1")
    await mirror.get(f"{TAGS}?n=2&ns=docker.io&evil=1&last=0")
    assert sorted(hub.find(kind="tags", status=200)[0].query.split("&")) == ["last=0", "n=2"]


async def test_tags_null(hub, mirror):
    """Upstream's null is an empty list."""
    hub.add_image(APP, "1")
    body = b'{"name": "library/app", "tags": null}'
    hub.script(Rule(kind="tags"), Status(200, body=body))
    assert json.loads((await mirror.get(TAGS)).body) == {"name": APP, "tags": []}


@pytest.mark.parametrize("fault", [Html(), Status(200, body=b"[]"), Status(200, body=b'{"tags": 5}')])
async def test_tags_that_are_none(hub, mirror, fault):
    """What is no list of tags is not passed on."""
    hub.add_image(APP, "1")
    hub.script(Rule(kind="tags", times=None), fault)
    answer = await mirror.get(TAGS)
    assert (answer.status, answer.code()) == (503, "UNAVAILABLE")


async def test_tags_are_kept_for_a_while(hub, mirror, clock):
    """A list is served from memory within the tags' time to live, then asked for again."""
    hub.add_image(APP, "1")
    await mirror.get(TAGS)
    hub.add_image(APP, "2")
    hub.reset_counters()
    answer = await mirror.get(TAGS)
    assert (answer.cache, json.loads(answer.body)["tags"], hub.count()) == ("HIT", ["1"], 0)
    clock.advance(61)
    answer = await mirror.get(TAGS)
    assert (answer.cache, json.loads(answer.body)["tags"]) == ("MISS", ["1", "2"])


@pytest.mark.parametrize(
    ("fault", "reason"), [(Status(503), "server_error"), (RateLimited(), "rate_limited"), (Html(), "protocol")]
)
async def test_tags_in_an_outage(hub, mirror, clock, fault, reason):
    """An old list is better than none, for as long as old tags are, and says why it is old."""
    hub.add_image(APP, "1")
    await mirror.get(TAGS)
    clock.advance(61)
    hub.script(Rule(kind="tags", times=None), fault)
    answer = await mirror.get(TAGS)
    assert (answer.status, answer.cache) == (200, "STALE")
    assert reason in answer.headers["Warning"]
    clock.advance(31 * 86400)
    assert (await mirror.get(TAGS)).status == 503


@pytest.mark.parametrize("code", [401, 403, 404])
@pytest.mark.parametrize("kind", ["tags", "referrers"])
async def test_refused_and_then_an_outage(hub, mirror, clock, kind, code):
    """A list that upstream has ceased to give does not come back in an outage."""
    image = hub.add_image(APP, "1")
    path = TAGS if kind == "tags" else f"/v2/{APP}/referrers/{image.digest}"
    assert (await mirror.get(path)).status == 200
    clock.advance(61)
    hub.script(Rule(kind=kind, times=None), Status(code))
    assert (await mirror.get(path)).status == 404
    clock.advance(61)
    hub.clear_script()
    hub.script(Rule(kind=kind, times=None), Status(503))
    answer = await mirror.get(path)
    assert (answer.status, answer.cache) == (404 if (kind, code) == ("referrers", 404) else 503, None)


async def test_tags_of_nothing(hub, mirror):
    """Upstream's 404 is passed on as the specification words it."""
    hub.add_image(APP, "1")
    hub.script(Rule(kind="tags"), Status(404))
    answer = await mirror.get(TAGS)
    assert (answer.status, answer.code()) == (404, "NAME_UNKNOWN")


async def test_referrers(hub, mirror):
    """Referrers come as upstream has them, with their media type, filtered if it filters."""
    image = hub.add_image(APP, "1")
    hub.add_referrer(APP, image.digest, "application/vnd.example.sbom")
    hub.add_referrer(APP, image.digest, "application/vnd.example.signature")
    path = f"/v2/{APP}/referrers/{image.digest}"
    answer = await mirror.get(path)
    assert answer.headers["Content-Type"] == OCI_INDEX
    assert len(json.loads(answer.body)["manifests"]) == 2
    assert "OCI-Filters-Applied" not in answer.headers
    answer = await mirror.get(path, params={"artifactType": "application/vnd.example.sbom"})
    assert len(json.loads(answer.body)["manifests"]) == 1
    assert answer.headers["OCI-Filters-Applied"] == "artifactType"


async def test_no_referrers_api(hub, mirror):
    """Upstream's 404 says that clients shall look for a tag; it reaches them, and not as a page."""
    image = hub.add_image(APP, "1")
    hub.referrers = False
    answer = await mirror.get(f"/v2/{APP}/referrers/{image.digest}")
    assert (answer.status, answer.headers["Content-Type"]) == (404, "application/json")


async def test_referrers_head(hub, mirror):
    """HEAD has the headers of GET and no body."""
    image = hub.add_image(APP, "1")
    path = f"/v2/{APP}/referrers/{image.digest}"
    get, head = await mirror.get(path), await mirror.head(path)
    assert (head.status, head.body) == (200, b"")
    assert head.headers["Content-Length"] == get.headers["Content-Length"] == str(len(get.body))


async def test_catalog(hub, mirror):
    """The catalog lists what is cached, page by page, and asks upstream nothing."""
    names = [f"library/app{number}" for number in range(5)]
    for name in names:
        hub.add_image(name, "1")
        await mirror.get(f"/v2/{name}/manifests/1")
    hub.add_image("library/never-pulled", "1")
    hub.reset_counters()
    assert await all_pages(mirror, "/v2/_catalog?n=2", "repositories") == (names, 3)
    assert await all_pages(mirror, "/v2/_catalog", "repositories") == (names, 1)
    assert await all_pages(mirror, "/v2/_catalog?n=0", "repositories") == ([], 1)
    assert hub.count() == 0


async def test_catalog_is_walked_once_for_all(hub, mirror, all_in, monkeypatch):
    """However many ask for the catalog at once, the index is walked over once."""
    hub.add_image(APP, "1")
    await mirror.get(f"/v2/{APP}/manifests/1")
    walks, hold = [], threading.Event()

    class Held:
        """The index, as long as a walk over it takes."""

        @property
        def tags(self):
            return self

        def repositories(self):
            walks.append(1)
            hold.wait(10)
            return mirror.store.index.tags.repositories()

    monkeypatch.setattr(mirror.graph.cache.catalog, "_index", Held())
    asking = [asyncio.create_task(mirror.get("/v2/_catalog")) for _ in range(10)]
    await all_in(10)
    hold.set()
    assert {answer.body for answer in await asyncio.gather(*asking)} == {b'{"repositories": ["library/app"]}'}
    assert len(walks) == 1


async def test_catalog_names_other_registries(hub, tmp_path):
    """Repositories of other registries than the default one carry its name, under which they can be pulled here."""
    hub.add_image("team/app", "1")
    entry = {"upstreams": [hub.url], "token_hosts": [hub.token_host]}
    registries = {"docker.io": entry, "other.example": entry}
    async with MirrorUnderTest(hub, tmp_path / "store", registries=registries) as mirror:
        await mirror.get("/v2/team/app/manifests/1?ns=other.example")
        names, _ = await all_pages(mirror, "/v2/_catalog", "repositories")
        assert names == ["other.example/team/app"]
        assert (await mirror.get(f"/v2/{names[0]}/manifests/1")).cache == "HIT"


@pytest.mark.parametrize("n", ["x", "-1", "1.5", "٣", "9" * 30])
@pytest.mark.parametrize("path", ["/v2/_catalog", TAGS])
async def test_bad_page_size(hub, mirror, path, n):
    """A page size that is no number is the client's mistake, told without a word to upstream."""
    hub.add_image(APP, "1")
    answer = await mirror.get(path, params={"n": n})
    assert (answer.status, answer.code()) == (400, "PAGINATION_NUMBER_INVALID")
    assert hub.count() == 0


async def test_kept_lists_are_bounded(hub, mirror):
    """However many different pages a client asks for, the memory that they take does not grow for ever."""
    hub.add_image(APP, "1")
    kept = mirror.cached_lists
    async with Wire(mirror.port) as wire:
        for number in range(1100):
            await wire.send(f"GET {TAGS}?last=t{number} HTTP/1.1\r\nHost: mirror\r\n\r\n".encode())
            assert (await wire.reply()).status == 200
    assert 0 < len(kept) <= 1024
