"""Search over what is held, as Docker, the command and the admin API do it."""

import json

import pytest

from tests.mirror.commands import command
from tests.mirror.syncing import Orders, pull

NAMES = ("library/nginx", "library/nginx-exporter", "bitnami/nginx", "acme/my-nginx", "library/redis")


@pytest.fixture
async def pulled(hub, mirror):
    """A mirror from which one tag of each name was pulled, and two of nginx."""
    for name in NAMES:
        hub.add_image(name, "1", [name.encode()])
        await pull(mirror, name, "1")
    hub.add_image("library/nginx", "2", [b"two"])
    await pull(mirror, "library/nginx", "2")
    return mirror


async def search(mirror, query):
    answer = await mirror.get(f"/v1/search?{query}")
    assert answer.status == 200
    return json.loads(answer.body)


def names(found):
    return [one["name"] for one in found["results"]]


async def test_docker_search(pulled):
    """The text itself comes first, then what begins with it; every name can be pulled as it stands."""
    ping = await pulled.get("/v1/_ping")
    assert (ping.status, ping.headers["X-Docker-Registry-Standalone"]) == (200, "true")
    found = await search(pulled, "q=nginx&n=25")
    assert names(found) == ["library/nginx", "bitnami/nginx", "library/nginx-exporter", "acme/my-nginx"]
    assert (found["num_results"], found["num_pages"], found["page"], found["page_size"]) == (4, 1, 1, 25)
    assert found["results"][0]["description"] == "2 tags held here"
    assert names(await search(pulled, "q=library/NGINX")) == names(found)
    assert len(names(await search(pulled, "q="))) == len(NAMES)
    assert names(await search(pulled, "q=none")) == []


async def test_pages(pulled):
    """From 1; a hundred results are the most."""
    second = await search(pulled, "q=nginx&n=3&page=2")
    assert names(second) == ["acme/my-nginx"]
    assert (second["num_pages"], second["page"]) == (2, 2)
    assert names(await search(pulled, "q=nginx&n=3&page=3")) == []
    assert (await search(pulled, "q=nginx&n=5000"))["page_size"] == 100


@pytest.mark.parametrize("query", ["n=0", "n=-1", "n=x", "page=0", "page=9999999999", "page=%C2%B2"])
async def test_pages_that_are_none(mirror, query):
    """They are refused by name."""
    answer = await mirror.get(f"/v1/search?q=a&{query}")
    assert (answer.status, answer.code()) == (400, "PAGINATION_NUMBER_INVALID")


async def test_what_may_not_be_pulled_is_not_found(hub, pulled):
    """Neither a denied repository, nor one without a tag that may be pulled."""
    registry = {
        "upstreams": [hub.url],
        "token_hosts": [hub.token_host],
        "deny": ["bitnami/*", "library/nginx:2", "acme/my-nginx:1"],
    }
    await pulled.reload(registries={"docker.io": registry})
    found = await search(pulled, "q=nginx")
    assert names(found) == ["library/nginx", "library/nginx-exporter"]
    assert found["results"][0]["description"] == "1 tag held here"


async def test_other_registries_have_their_name(hub, mirror):
    """As it is pulled."""
    hub.add_image("owner/app", "1", [b"x"])
    await mirror.reload(registries={"ghcr.io": {"upstreams": [hub.url], "token_hosts": [hub.token_host]}})
    assert (await mirror.get("/v2/ghcr.io/owner/app/manifests/1")).status == 200
    assert names(await search(mirror, "q=app")) == ["ghcr.io/owner/app"]


async def test_admin_api_and_command(pulled, tmp_path):
    """Both find the same; the command exits with 1 if there is nothing."""
    status, found = await Orders(pulled).ask("GET", "/api/v1/search?q=redis")
    assert (status, found) == (200, {"results": [{"name": "library/redis", "tags": 1}], "count": 1})
    assert (await Orders(pulled).ask("GET", "/api/v1/search?q=a&page=x"))[0] == 400
    url = f"http://127.0.0.1:{pulled.admin_port}"
    status, out, complaint = await command("search", "nginx", "--url", url, directory=tmp_path)
    assert (status, complaint) == (0, "")
    assert [line.split()[0] for line in out.splitlines()[1:]][:2] == ["library/nginx", "bitnami/nginx"]
    status, out, complaint = await command("search", "none", "--url", url, directory=tmp_path)
    assert (status, out, complaint) == (1, "", "nothing is held whose name contains none\n")
    status, out, _ = await command("search", "redis", "--json", "--url", url, directory=tmp_path)
    assert json.loads(out)["count"] == 1
