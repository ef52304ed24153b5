"""What would make pulls fail is told before the first one: log, `check-config --probe`, `/readyz`, a gauge and `status`."""

import signal
import socket
from dataclasses import dataclass, field

import pytest
import yaml

from tests.mirror.commands import command
from tests.support.certificates import Authority
from tests.support.mirrors import MirrorUnderTest
from tests.support.processes import Served
from tests.support.waiting import eventually


@dataclass
class Fault:
    """A fault of the configuration or the host, and how it is seen.

    Attributes:
        check: the name of the check.
        said: a part of the text.
        settings: of the mirror.
        ready: whether the mirror stays ready.
    """

    check: str
    said: str
    settings: dict = field(default_factory=dict)
    ready: bool = True


def wrong_password(hub, tmp_path):
    hub.users = {"someone": "right"}
    (tmp_path / "password").write_text("wrong")
    account = {"username": "someone", "password_file": str(tmp_path / "password")}
    registry = {"upstreams": [hub.url], "token_hosts": [hub.token_host], **account}
    return Fault("account.docker.io", "check username and password_file", {"registries": {"docker.io": registry}}, ready=False)


def small_disk(hub, tmp_path):
    return Fault("storage", "min_free keeps 1000TiB", {"storage": {"path": str(tmp_path / "store"), "min_free": "1000TiB"}})


def expired_certificate(hub, tmp_path):
    certificate, key = Authority(tmp_path / "ca").issue("mirror", days=-1)
    tls = {"certificate": str(certificate), "key": str(key)}
    return Fault("tls.certificate", "expired 1d", {"tls": tls})


def wrong_clock(hub, tmp_path):
    hub.advance(7200)
    return Fault("clock", "behind the one of 127.0.0.1")


@pytest.mark.parametrize(
    ("fault", "workers"),
    # Each worker looks at the disk and the certificate itself.
    [(wrong_password, 1), (wrong_password, 2), (wrong_clock, 1), (wrong_clock, 2), (small_disk, 1), (expired_certificate, 1)],
)
async def test_told_before_the_first_pull(hub, tmp_path, fault, workers):
    """Each surface names the check and says the same; no pull is spent to find it out."""
    fault = fault(hub, tmp_path)
    hub.reset_counters()
    async with Served(hub, tmp_path, workers=workers, **fault.settings) as mirror:
        await mirror.logged("check_failed")
        await mirror.logged(f'"{fault.check}"')
        for _ in range(2 * workers):
            await eventually(mirror.ready, holds=lambda found: shows(found, fault))
            await eventually(lambda: gauge(mirror, fault.check), holds=lambda value: value == 0)
            address = ("--url", f"http://127.0.0.1:{mirror.admin_port}")
            _, out, _ = await command("status", *address, directory=tmp_path)
            assert fault.said in " ".join(out.split())
            assert ("NOT READY" in out) is not fault.ready
        probed, out, _ = await command("check-config", "--probe", str(mirror.file), directory=tmp_path)
        (line,) = (line for line in out.splitlines() if line.split()[1:2] == [fault.check])
        assert (probed, line.startswith("FAILED"), fault.said in line) == (1, True, True)
    assert hub.count(kind="manifest") == 0
    assert hub.count(kind="blob") == 0


def shows(found, fault):
    status, body = found
    check = body["checks"].get(fault.check, {"ok": True})
    return not check["ok"] and fault.said in check["text"] and status == (200 if fault.ready else 503)


async def gauge(mirror, check):
    url, plain = f"http://127.0.0.1:{mirror.admin_port}/metrics", {"Accept-Encoding": "identity"}
    async with mirror.session.get(url, headers=plain) as response:
        lines = (await response.text()).splitlines()
    name = f'registry_mirror_check_ok{{check="{check}"}} '
    return next((float(line.removeprefix(name)) for line in lines if line.startswith(name)), None)


async def test_misspelt_key(hub, tmp_path):
    """It ends the start and `check-config`; a reload with it is refused, and the running mirror says so everywhere."""
    async with Served(hub, tmp_path) as mirror:
        assert await eventually(lambda: gauge(mirror, "configuration")) == 1
        mirror.write(downlods={"prefetch": False})
        for arguments in (("check-config",), ("check-config", "--probe"), ("serve", "--config")):
            code, _, complaint = await command(*arguments, str(mirror.file), directory=tmp_path)
            assert (code, "downlods: " in complaint, "did you mean downloads?" in complaint) == (2, True, True)
        mirror.signal(signal.SIGHUP)
        await mirror.logged("configuration_refused")
        status, body = await mirror.ready()
        assert (status, body["checks"]["configuration"]["ok"]) == (200, False)
        assert "did you mean downloads?" in body["checks"]["configuration"]["text"]
        assert await gauge(mirror, "configuration") == 0
        _, out, _ = await command("status", "--url", f"http://127.0.0.1:{mirror.admin_port}", directory=tmp_path)
        assert "did you mean downloads?" in " ".join(out.split())
        del mirror.settings["downlods"]
        mirror.write()
        mirror.signal(signal.SIGHUP)
        await mirror.logged("configuration_reloaded")
        assert (await mirror.ready())[1]["checks"]["configuration"]["ok"]
        assert await gauge(mirror, "configuration") == 1


@pytest.mark.parametrize("workers", [1, 2])
async def test_account_recovers(hub, tmp_path, workers):
    """The right password ends it without a restart and without a pull."""
    fault = wrong_password(hub, tmp_path)
    async with Served(hub, tmp_path, workers=workers, **fault.settings) as mirror:
        await eventually(mirror.ready, holds=lambda found: found[0] == 503)
        (tmp_path / "password").write_text("right")
        await eventually(mirror.ready, holds=lambda found: found[0] == 200 and found[1]["checks"][fault.check]["ok"])
        for _ in range(2 * workers):
            await eventually(lambda: gauge(mirror, fault.check), holds=lambda value: value == 1)


async def test_right_password(hub, tmp_path):
    """Upstreams are asked once, not by each worker; the account is used for that, and is known to be right afterwards."""
    fault = wrong_password(hub, tmp_path)
    (tmp_path / "password").write_text("right")
    async with Served(hub, tmp_path, workers=2, **fault.settings) as mirror:
        await mirror.logged("upstreams_checked")
        assert hub.count(kind="token") == 1
        assert hub.count(host="registry") == 2  # the challenge, and its answer
        (event,) = (event for event in mirror.events() if event["event"] == "upstreams_checked")
        assert event["failed"] == []
        status, body = await mirror.ready()
        assert (status, body["checks"][fault.check]["ok"]) == (200, True)


@pytest.mark.parametrize("workers", [1, 2])
async def test_upstream_down(hub, tmp_path, workers):
    """It is in the log and in `status`; the mirror is ready, for it serves what it holds, and finds upstream when it is back."""
    await hub.stop()
    async with Served(hub, tmp_path, workers=workers) as mirror:
        await mirror.logged('"registries.docker.io"')
        assert (await mirror.ready())[0] == 200
        address = ("--url", f"http://127.0.0.1:{mirror.admin_port}")

        async def status():
            code, out, _ = await command("status", "--check", *address, directory=tmp_path)
            return code, "DOWN" in out, "failing: " in out

        # Whichever worker answers: one learns from the other what that was told.
        for _ in range(2 * workers):
            await eventually(mirror.ready, holds=lambda found: "failing: " in "".join(found[1]["upstreams"].values()))
            await eventually(status, holds=lambda seen: seen == (1, True, True))
        await hub.start()
        await eventually(mirror.ready, holds=lambda found: set(found[1]["upstreams"].values()) == {"recovering"})


async def test_silent_upstream(hub, tmp_path, silent):
    """An upstream that accepts connections and says nothing holds up neither the start nor its end."""
    registry = {"upstreams": [silent]}
    async with Served(hub, tmp_path, registries={"docker.io": registry}) as mirror:
        assert (await mirror.get("/v2/"))[0] == 200
        mirror.signal()
        assert await mirror.ended() == 0


@pytest.fixture
def silent():
    """The URL of a server that never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


async def test_clock_recovers(hub, tmp_path, monkeypatch):
    """A clock that is set right is noticed without a client."""
    monkeypatch.setattr("mirror.service.logged_checks._RECHECK_S", 0.05)
    hub.advance(-7200)
    async with MirrorUnderTest(hub, tmp_path / "store") as mirror:
        mirror.mirror.check_upstreams()
        admin = f"http://127.0.0.1:{mirror.admin_port}/readyz"

        async def clock():
            async with mirror.session.get(admin) as response:
                return (await response.json())["checks"]["clock"]

        said = f"ahead of the one of {hub.registry_host}: tokens and certificates may fail"
        await eventually(clock, holds=lambda found: not found["ok"] and said in found["text"])
        hub.advance(7200)
        await eventually(clock, holds=lambda found: found["ok"])


async def test_not_a_registry(hub, tmp_path):
    """A web server that is no registry is told from one that does not know a repository."""
    config = {
        "storage": {"path": str(tmp_path / "store")},
        "registries": {"docker.io": {"upstreams": [f"http://{hub.token_host}"]}},
    }
    (tmp_path / "mirror.yaml").write_text(yaml.safe_dump(config))
    code, out, _ = await command("check-config", "--probe", directory=tmp_path)
    (line,) = (line for line in out.splitlines() if line.split()[1:2] == ["registries.docker.io"])
    assert (code, "answers 404 to /v2/: it is no registry" in line) == (1, True)
