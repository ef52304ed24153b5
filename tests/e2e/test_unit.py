"""The whole mirror as the shipped unit runs it: its user, its file systems, its system call filter, under a real systemd."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import yaml

from tests.e2e.harness.client import Answer, get_manifest, request
from tests.e2e.harness.hub import Hub
from tests.e2e.harness.systemd import SOCKET, Systemd
from tests.support.ports import free_port
from tests.support.waiting import wait_until

pytestmark = pytest.mark.e2e

UNIT = "registry-mirror"
VERIFY = "registry-mirror-verify"
MEBIBYTE = 1 << 20
LAYER = 6 * MEBIBYTE
MAX_SIZE = 20 * MEBIBYTE
SECONDS = 20


class Installed:
    """The mirror under systemd, in front of a hub that has five images of one layer each."""

    def __init__(self, directory: Path, workers: int) -> None:
        """Boot, without starting the unit."""
        self.hub = Hub(directory / "hub")
        self.layers = [self._publish(number) for number in range(5)]
        self._port, self._admin_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self._workers = workers
        self.systemd = Systemd(directory / "systemd", self.configuration())

    def configuration(self, **registry: object) -> str:
        """A store that holds three of the images, and hashes itself again every second."""
        return yaml.safe_dump(
            {
                "listen": f"127.0.0.1:{self._port}",
                "admin": {"listen": f"127.0.0.1:{self._admin_port}"},
                "workers": self._workers,
                "storage": {"max_size": MAX_SIZE, "min_free": "0", "scrub_interval": "1s"},
                "registries": {"docker.io": {"upstreams": [self.hub.url], **registry}},
                "sync": {"interval": "0"},
            }
        )

    def close(self) -> None:
        """End systemd and the hub."""
        try:
            self.systemd.close()
        finally:
            self.hub.close()

    def pull(self, number: int) -> Answer:
        """Pull an image as a client does; the answer for its layer."""
        assert get_manifest(self.url, f"library/image{number}", "1").status == 200
        answer = request("GET", f"{self.url}/v2/library/image{number}/blobs/{self.layers[number]}")
        assert (answer.status, len(answer.body)) == (200, LAYER)
        return answer

    def metric(self, name: str) -> float:
        """The sum of all samples of a family."""
        text = request("GET", f"http://127.0.0.1:{self._admin_port}/metrics").body.decode()
        lines = [line for line in text.splitlines() if line.startswith((f"registry_mirror_{name}{{", f"registry_mirror_{name} "))]
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    def blob_path(self, number: int) -> Path:
        """Where a layer lies, as seen from outside."""
        algorithm, _, encoded = self.layers[number].partition(":")
        return self.systemd.store / "blobs" / algorithm / encoded[:2] / encoded

    def _publish(self, number: int) -> str:
        image = self.hub.add_image(f"library/image{number}", "1", [{"size": LAYER, "seed": number}])
        return str(image["layers"][0]["digest"])


@pytest.fixture(params=[1, 2])
def installed(request: pytest.FixtureRequest, directory: Path, numbers: Iterator[int]) -> Iterator[Installed]:
    """A mirror with one worker, and one with two, started."""
    with closing(Installed(directory / f"unit-{next(numbers)}", request.param)) as made:
        made.systemd.succeed("start", UNIT)
        yield made


def _within(condition: Callable[[], bool], what: str, installed: Installed) -> None:
    try:
        wait_until(condition, what, SECONDS)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{installed.systemd.log()}") from None


def _rot(blob: Path) -> None:
    with blob.open("r+b") as file:
        file.write(b"rot")


def _is_right(installed: Installed, number: int) -> bool:
    return f"sha256:{hashlib.sha256(installed.pull(number).body).hexdigest()}" == installed.layers[number]


def test_whole_life_under_the_unit(installed: Installed) -> None:
    """Pulls, counts, evicts, scrubs, mends, reloads and stops: nothing of it is refused by what the unit forbids."""
    systemd = installed.systemd
    for number in range(5):
        assert installed.pull(number).headers["X-Cache"] in ("MISS", "JOINED")
    _within(lambda: installed.pull(4).headers["X-Cache"] == "HIT", "a hit", installed)

    _within(lambda: "store_counted" in systemd.log(), "the store is counted", installed)
    _within(lambda: installed.metric("evicted_blobs_total") > 0, "eviction", installed)
    assert not installed.blob_path(0).exists()
    assert sum(path.stat().st_blocks * 512 for path in installed.systemd.store.glob("blobs/**/*") if path.is_file()) <= MAX_SIZE

    systemd.succeed("stop", UNIT)
    assert (systemd.show(UNIT, "Result"), systemd.show(UNIT, "ExecMainStatus")) == ("success", "0")
    # The next shard to be scrubbed is the one in which the last layer lies.
    (systemd.store / "scrub").write_text(f"{int(installed.blob_path(4).parent.name, 16)} 0\n")
    systemd.succeed("start", UNIT)
    _within(lambda: installed.metric("scrubbed_blobs_total") > 0, "scrub", installed)

    _rot(installed.blob_path(4))
    assert not _is_right(installed, 4)
    _within(lambda: _is_right(installed, 4), "a client that comes back gets the right bytes", installed)

    systemd.configure(installed.configuration(deny=["library/image4"]))
    systemd.succeed("reload", UNIT)
    _within(lambda: get_manifest(installed.url, "library/image4", "1").status == 403, "the new configuration", installed)
    systemd.configure("lisen: :5000\n")
    assert systemd.control("reload", UNIT).returncode != 0
    assert "lisen: there is no such key; did you mean listen?" in systemd.log()
    assert get_manifest(installed.url, "library/image4", "1").status == 403
    systemd.configure(installed.configuration())
    systemd.succeed("reload", UNIT)
    _within(lambda: get_manifest(installed.url, "library/image4", "1").status == 200, "the old configuration", installed)

    systemd.succeed("stop", UNIT)
    log = systemd.log()
    assert [word for word in ("Traceback", "not permitted", "_failed", "Errno", "PermissionError") if word in log] == [], log


@pytest.mark.parametrize("installed", [1], indirect=True)
def test_verify_under_the_unit(installed: Installed) -> None:
    """`verify`, as the service's user and in its sandbox, finds what is right and drops what is damaged."""
    systemd = installed.systemd
    installed.pull(0)
    systemd.succeed("stop", UNIT)
    systemd.succeed("start", VERIFY)
    first = json.loads(systemd.log(VERIFY).splitlines()[-1])
    assert first["checked"] >= 3
    assert first["wrong"] == 0

    _rot(installed.blob_path(0))
    assert systemd.control("start", VERIFY).returncode != 0
    assert json.loads(systemd.log(VERIFY).splitlines()[-1])["wrong"] == 1
    assert not installed.blob_path(0).exists()


def test_socket_and_watchdog(directory: Path, numbers: Iterator[int]) -> None:
    """systemd holds the port and starts the mirror for its first client; one that hangs is replaced, and no client is refused."""
    with closing(Installed(directory / f"unit-{next(numbers)}", 1)) as installed:
        systemd, listen = installed.systemd, installed.url.removeprefix("http://")
        systemd.install(f"{UNIT}.socket", SOCKET.read_text().replace("127.0.0.1:5000", listen))
        systemd.install(f"{UNIT}.service.d/hasty.conf", "[Service]\nWatchdogSec=2s\nTimeoutAbortSec=1s\nRestartSec=0\n")
        systemd.succeed("start", f"{UNIT}.socket")
        assert systemd.show(UNIT, "ActiveState") == "inactive"
        assert installed.pull(0).headers["X-Cache"] in ("MISS", "JOINED")
        assert (systemd.show(UNIT, "ActiveState"), systemd.show(UNIT, "NRestarts")) == ("active", "0")

        systemd.succeed("kill", "--signal=SIGSTOP", UNIT)
        # A connection that it has accepted would end with it.
        _within(lambda: systemd.show(UNIT, "NRestarts") == "1", "another process", installed)
        assert installed.pull(0).headers["X-Cache"] == "HIT"
