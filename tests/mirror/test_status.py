"""`status`: one screen with what somebody who is paged wants to know, and the numbers of it agree with upstream's."""

import asyncio
import json
import os
import re

import pytest

from mirror.cli.status import screen
from mirror.core.units import about
from tests.fakehub import RateLimited, Rule, Status
from tests.mirror.commands import command
from tests.support.mirrors import MirrorUnderTest
from tests.support.names import APP, TAG
from tests.support.waiting import eventually


async def status(mirror, **headers):
    async with mirror.session.get(f"http://127.0.0.1:{mirror.admin_port}/api/v1/status", headers=headers) as response:
        assert response.status == 200
        return await response.json()


async def test_nothing_yet(hub, mirror):
    """A new mirror has zeros, not gaps."""
    found = await status(mirror)
    assert (found["ready"], found["requests"]["pulls"], found["requests"]["hit_ratio"]) == (True, 0, None)
    assert (found["downloads"], found["troubles"]) == ([], [])
    assert found["store"]["free"] > 0
    assert "none since the start" in "\n".join(screen(found, 80))


async def test_figures(hub, mirror):
    """Outcomes, ratio and bytes are what clients and upstream have seen."""
    image = hub.add_image(APP, "1", layers=[os.urandom(50_000)])
    blob = f"/v2/{APP}/blobs/{image.layers[0].digest}"
    for path in (TAG, blob):
        await mirror.get(path)
    await mirror.idle()
    for path in (TAG, blob, blob, f"/v2/{APP}/tags/list"):
        await mirror.get(path)
    assert (await mirror.get("/v2/library/none/manifests/1")).status == 404
    found = await status(mirror)
    requests = found["requests"]
    assert (requests["pulls"], requests["outcomes"], requests["errors"]) == (5, {"HIT": 3, "MISS": 2}, 0)
    assert requests["hit_ratio"] == pytest.approx(0.6)
    assert requests["served_bytes"] >= 2 * len(image.raw) + 3 * 50_000
    assert 50_000 + len(image.raw) <= requests["upstream_bytes"] < 2 * 50_000
    (upstream,) = found["upstreams"]
    assert (upstream["registry"], upstream["up"], upstream["pulls_left"]) == ("docker.io", True, hub.ratelimit_remaining)
    assert found["store"]["blobs"] == 2
    nothing = {"blobs": 0, "bytes": 0}
    assert (found["store"]["evicted"], found["store"]["purged_bytes"]) == (
        dict.fromkeys(("max_size", "min_free", "registry_max_size"), nothing),
        0,
    )
    assert requests["hits"] == 3
    text = "\n".join(screen(found, 80))
    for part in ("ready, version", "60% of 5 answered from the store", "3 HIT, 2 MISS", "pulls left"):
        assert part in text


async def test_downloads(hub, mirror):
    """A running download is named by the image that it is of."""
    image = hub.add_image(APP, "1", layers=[os.urandom(200_000)])
    await mirror.get(TAG)
    gate = hub.gate(Rule(kind="blob"), 1000)
    pull = asyncio.create_task(mirror.get(f"/v2/{APP}/blobs/{image.layers[0].digest}"))
    await eventually(lambda: mirror.downloads.readers == 1)
    await eventually(lambda: all(download.size for download in mirror.downloads))
    found = await status(mirror)
    (download,) = found["downloads"]
    assert (download["image"], download["size"], download["readers"]) == (f"docker.io/{APP}:1", 200_000, 1)
    (line,) = (line for line in screen(found, 80) if f"docker.io/{APP}:1" in line)
    assert "1 readers" in line
    # Nothing arrives while the gate is closed, and the rate says so.
    found = await eventually(lambda: status(mirror), holds=lambda found: found["downloads"][0]["bytes_per_second"] is not None)
    assert found["downloads"][0]["bytes_per_second"] >= 0
    assert "/s" in "\n".join(screen(found, 80))
    gate.release()
    await pull


async def test_failures(hub, mirror, clock):
    """What failed is there with its image and cause, the latest first, equal ones once; a 404 is no failure."""
    hub.add_image(APP, "1")
    image = hub.add_image(APP, "2")
    for path in (
        TAG,
        f"/v2/{APP}/manifests/2",
        f"/v2/{APP}/blobs/{image.config.digest}",
        f"/v2/{APP}/blobs/{image.layers[0].digest}",
    ):
        await mirror.get(path)
    await mirror.idle()
    clock.advance(61)
    hub.script(Rule(kind="manifest", times=None), Status(503))
    for _ in range(2):
        assert (await mirror.get(f"/v2/{APP}/manifests/2")).cache == "STALE"
    assert (await mirror.get("/v2/library/new/manifests/1")).status == 503
    found = await status(mirror)
    error, stale = found["troubles"]
    assert (error["image"], error["outcome"], "503" in error["cause"]) == ("docker.io/library/new:1", "ERROR", True)
    assert (stale["image"], stale["outcome"], stale["times"]) == (f"docker.io/{APP}:2", "STALE", 2)
    assert found["requests"]["errors"] == 1
    assert (await mirror.get("/v2/library/none/tags/list")).status == 404
    assert len((await status(mirror))["troubles"]) == 2
    lines = screen(found, 80)
    assert any("docker.io/library/new:1" in line for line in lines)
    assert max(map(len, lines)) <= 80
    assert all(line == line.rstrip() for line in lines)


async def test_wrong_password(hub, tmp_path):
    """A refused account is the first thing on the screen."""
    password = tmp_path / "password"
    password.write_text("wrong")
    hub.add_image(APP, "1")
    hub.users = {"someone": "right"}
    registry = {"upstreams": [hub.url], "token_hosts": [hub.token_host], "username": "someone", "password_file": str(password)}
    async with MirrorUnderTest(hub, tmp_path / "store", registries={"docker.io": registry}) as mirror:
        await mirror.get(TAG)
        found = await status(mirror)
        assert found["ready"] is False
        first = "\n".join(screen(found, 80)[:3])
        assert "NOT READY" in first
        assert "docker.io" in first


async def test_rate_limit(hub, mirror):
    """The pulls that are left are on the screen, also when there are none."""
    hub.add_image(APP, "1")
    hub.ratelimit_limit, hub.ratelimit_remaining = 100, 0
    hub.script(Rule(kind="manifest", times=None), RateLimited())
    await mirror.get(TAG)
    found = await status(mirror)
    assert found["troubles"][0]["image"] == f"docker.io/{APP}:1"
    assert "429" in " ".join(screen(found, 300)) or "limits" in " ".join(screen(found, 300))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.4, "59s"), (3599, "59m59s"), (3600, "1h"), (86399, "23h59m"), (90061, "1d1h"), (1e9, "11574d1h")],
)
def test_ages(seconds, text):
    """An age has its two largest units."""
    assert about(seconds) == text


async def test_command(mirror, tmp_path):
    """People get the screen, scripts the API's JSON."""
    address = ("--url", f"http://127.0.0.1:{mirror.admin_port}")
    code, out, complaint = await command("status", *address, directory=tmp_path)
    assert (code, complaint) == (0, "")
    assert re.match(r"mirror +ready, version", out)
    code, out, _ = await command("status", "--json", "--check", *address, directory=tmp_path)
    assert (code, json.loads(out)["ready"]) == (0, True)


async def test_wrong_port(mirror, tmp_path):
    """The registry's address is called that, instead of a dump of what it answers."""
    code, _, complaint = await command("status", "--url", f"http://127.0.0.1:{mirror.port}", directory=tmp_path)
    (line,) = complaint.splitlines()
    assert (code, "is the address of a registry; the admin address has another port" in line) == (1, True)


async def test_no_tls_at_the_port(mirror, tmp_path):
    """An https URL of the plain admin address is told from a mirror that is down."""
    code, _, complaint = await command("status", "--url", f"https://127.0.0.1:{mirror.admin_port}", directory=tmp_path)
    (line,) = complaint.splitlines()
    assert (code, "there is no TLS at this port; the admin address is plain HTTP" in line) == (1, True)


async def test_tokens(hub, tmp_path):
    """A missing token and a wrong one are told apart."""
    token, wrong = tmp_path / "token", tmp_path / "wrong"
    token.write_text("right")
    wrong.write_text("wr0ng")
    async with MirrorUnderTest(hub, tmp_path / "store", admin={"token_file": str(token)}) as mirror:
        address = ("--url", f"http://127.0.0.1:{mirror.admin_port}")
        code, _, complaint = await command("status", *address, directory=tmp_path)
        assert (code, "requires a token (401)" in complaint) == (1, True)
        code, _, complaint = await command("status", *address, "--token-file", str(wrong), directory=tmp_path)
        assert (code, "refuses the token (401)" in complaint, "wr0ng" in complaint) == (1, True, False)
