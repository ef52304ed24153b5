"""`check-config --probe` finds before the first pull what would make pulls fail."""

import errno
import json
import os

import pytest
import yaml

from mirror.cli.status import screen
from tests.mirror.commands import command
from tests.support.certificates import Authority
from tests.support.mirrors import MirrorUnderTest
from tests.support.ports import free_port
from tests.support.waiting import eventually


@pytest.fixture
def probe(hub, tmp_path):
    """Runs it for a mirror of the hub with these sections."""

    async def probe(**sections):
        upstream = {"upstreams": [hub.url], "token_hosts": [hub.token_host], **sections.pop("hub", {})}
        config = {
            "listen": f"127.0.0.1:{free_port()}",
            "admin": {"listen": f"127.0.0.1:{free_port()}"},
            "storage": {"path": str(tmp_path / "a/b"), "max_size": 0, "min_free": 0},
            "registries": {"docker.io": upstream},
            **sections,
        }
        (tmp_path / "mirror.yaml").write_text(yaml.safe_dump(config))
        status, out, complaint = await command("check-config", "--probe", directory=tmp_path)
        assert complaint == ""
        rows = [line.split(None, 2) for line in out.splitlines()[1:]]
        return status, {name: (state, text) for state, name, text in rows}

    return probe


async def test_all_is_well(hub, probe, tmp_path):
    """Each check is a line; no pull is spent, and no store is made."""
    status, found = await probe()
    assert status == 0, found
    assert {state for state, _ in found.values()} == {"ok"}
    assert found.keys() == {"storage", "listen", "admin.listen", "registries.docker.io", "clock"}
    assert hub.count(method="GET", kind="manifest") == 0
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(("password", "ok"), [("right", True), ("wrong", False)])
async def test_account(hub, probe, tmp_path, password, ok):
    hub.users = {"someone": "right"}
    (tmp_path / "password").write_text(password)
    status, found = await probe(hub={"username": "someone", "password_file": str(tmp_path / "password")})
    state, text = found["account.docker.io"]
    assert (status, state) == ((0, "ok") if ok else (1, "FAILED"))
    assert ("someone is accepted" in text, "check username and password_file" in text, password in text) == (ok, not ok, False)
    assert found["registries.docker.io"] == ("ok", f"{hub.registry_host} answers")


async def test_upstream_down(probe):
    status, found = await probe(hub={"upstreams": ["http://127.0.0.1:1"]})
    assert (status, found["registries.docker.io"][0]) == (1, "FAILED")
    assert "127.0.0.1:1" in found["registries.docker.io"][1]


async def test_port_and_disk(hub, probe):
    """A port that another program has, and a disk that is smaller than max_size."""
    status, found = await probe(listen=hub.registry_host, storage={"path": "x", "max_size": "1000TiB", "min_free": 0})
    assert (status, found["listen"][0], found["storage"][0]) == (1, "FAILED", "FAILED")
    assert "1000TiB" in found["storage"][1]


async def test_running_mirror(mirror, probe):
    """The ports of a mirror that runs are in use by the one that is meant."""
    addresses = {"listen": f"127.0.0.1:{mirror.port}", "admin": {"listen": f"127.0.0.1:{mirror.admin_port}"}}
    status, found = await probe(**addresses)
    assert (status, "a mirror serves there" in found["listen"][1]) == (0, True)


async def test_certificate(probe, tmp_path):
    """The authority of the tests issues for two days, which is soon."""
    certificate, key = Authority(tmp_path / "ca").issue("mirror")
    status, found = await probe(tls={"certificate": str(certificate), "key": str(key)})
    state, text = found["tls.certificate"]
    assert (status, state) == (1, "FAILED")
    assert text.startswith(("expires in 2d", "expires in 1d23h59m"))


async def test_running_mirror_repeats_the_checks(hub, tmp_path, log):
    """A disk that is too small is in the log, /readyz, the metric and `status`; pulls go on, so the mirror stays ready."""
    storage = {"path": str(tmp_path / "store"), "max_size": "1000TiB", "min_free": "0"}
    async with MirrorUnderTest(hub, tmp_path / "store", storage=storage) as mirror:
        await eventually(lambda: any(event["event"] == "check_failed" for event in log))
        (event,) = (event for event in log if event["event"] == "check_failed")
        assert (event["check"], "1000TiB" in event["said"]) == ("storage", True)
        admin = f"http://127.0.0.1:{mirror.admin_port}"
        async with mirror.session.get(f"{admin}/readyz") as response:
            assert response.status == 200
            check = (await response.json())["checks"]["storage"]
        assert (check["ok"], "1000TiB" in check["text"]) == (False, True)
        async with mirror.session.get(f"{admin}/metrics", headers={"Accept-Encoding": "identity"}) as response:
            assert 'registry_mirror_check_ok{check="storage"} 0.0' in await response.text()
        async with mirror.session.get(f"{admin}/api/v1/status") as response:
            lines = screen(await response.json(), 80)
        assert any(line.startswith("storage  FAILED: ") for line in lines)


async def test_disk_that_fails(hub, tmp_path, monkeypatch):
    """An error of the disk is a failed check, and no failure of /readyz, of the metrics or of `status`."""
    async with MirrorUnderTest(hub, tmp_path / "store") as mirror:

        def fails(path):
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(os, "statvfs", fails)
        found = {}
        for path in ("/readyz", "/metrics", "/api/v1/status"):
            async with mirror.session.get(f"http://127.0.0.1:{mirror.admin_port}{path}") as response:
                assert response.status == 200, path
                found[path] = await response.read()
    storage = json.loads(found["/readyz"])["checks"]["storage"]
    assert (storage["ok"], "Input/output error" in storage["text"]) == (False, True)
    assert any("Input/output error" in line for line in screen(json.loads(found["/api/v1/status"]), 80))
