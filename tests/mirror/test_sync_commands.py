"""`sync` and `warm` as an operator uses them: processes of their own, against a running mirror."""

import asyncio
import fcntl
import json
import os
import pty
import re
import signal
import struct
import termios

import pytest

from tests.fakehub import Rule, Slow
from tests.mirror.commands import begun, command, read_all
from tests.mirror.syncing import Orders, named, pull
from tests.support.mirrors import MirrorUnderTest
from tests.support.names import APP
from tests.support.waiting import LIMIT

NAME = f"docker.io/{APP}"


@pytest.fixture
async def mirror(hub, tmp_path):
    """A mirror that gives up no image while a test holds it up, however long a command takes to get under way."""
    async with MirrorUnderTest(hub, tmp_path / "store", downloads={"stall_timeout": "60s"}) as under_test:
        yield under_test


@pytest.fixture
def run(mirror, tmp_path):
    """Runs a command against `mirror`."""

    async def run(*arguments):
        return await command(*arguments, "--url", f"http://127.0.0.1:{mirror.admin_port}", directory=tmp_path)

    return run


async def test_sync(hub, mirror, run):
    """`sync` looks at what is held, a line for each image and one for all; `sync IMAGE` at some of it."""
    for tag in ("1", "2"):
        hub.add_image(APP, tag, [tag.encode()])
        await pull(mirror, APP, tag)
    hub.add_image(APP, "2", [b"x" * 5 * 1024])
    status, out, complaint = await run("sync")
    assert (status, complaint) == (0, "")
    *lines, last = out.splitlines()
    assert sorted(lines) == [f"{NAME}:1: unchanged", next(line for line in lines if line.startswith(f"{NAME}:2: moved, 5."))]
    assert re.match(r"completed in \d+s: 1 new or moved, 1 unchanged; 5\.", last)
    status, out, _ = await run("sync", "app:1")
    assert (status, out.splitlines()[0]) == (0, f"{NAME}:1: unchanged")
    assert re.match(r"completed in \d+s: 1 unchanged; 0B fetched", out.splitlines()[1])


async def test_not_in_step(hub, mirror, run):
    """What could not be brought in sync is named with the reason, and the status is 1."""
    status, out, complaint = await run("sync", "nothing:*")
    assert status == 1
    assert re.match(r"failed in \d+s: no images", out)
    assert complaint.startswith("nothing:*: nothing of that name is held here")
    hub.add_image(APP, "1")
    status, out, complaint = await run("warm", "app:1", "app:none")
    assert status == 1
    assert f"{NAME}:none: gone\n" in out
    assert complaint.startswith(f"{NAME}:none: upstream ")
    assert re.match(r"failed in \d+s: 1 gone, 1 new or moved; ", out.splitlines()[-1])


async def test_warm(hub, mirror, run):
    """`warm` brings an image for the platforms that are named; --json tells what came of it, and nothing else."""
    image = hub.add_image(APP, "1", platforms=["linux/amd64", "linux/arm64", "linux/s390x"])
    status, out, complaint = await run("warm", "app:1", "--platform", "linux/arm64", "--platform", "linux/s390x")
    assert (status, complaint) == (0, "")
    assert out.startswith(f"{NAME}:1: new, ")
    assert [mirror.holds(child.digest) for child in image.children.values()] == [False, True, True]
    status, out, _ = await run("warm", "app:1", "--json")
    done = json.loads(out)
    # Of the configured platform nothing was held.
    assert (status, done["result"], done["tags"]) == (0, "completed", {"completed": 1})
    assert (await run("warm", "app:1"))[1].startswith(f"{NAME}:1: unchanged, 0B fetched")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("warm", "UPPER"), "invalid name 'UPPER'"),
        (("warm", "*/app"), "only the tag can be a glob"),
        (("sync", "a b"), "'a b'"),
        (("warm", "app", "--platform", "arm64"), "platforms: invalid platform 'arm64'"),
    ],
)
async def test_names_that_are_none(hub, run, arguments, said):
    """What cannot be a name is refused by that name, in one line, and nothing is asked of upstream."""
    status, out, complaint = await run(*arguments)
    (line,) = complaint.splitlines()
    assert (status, out) == (1, "")
    assert "(400)" in line
    assert said in line
    assert hub.count() == 0


async def test_detach(hub, mirror, run):
    """--detach gives the order and leaves; the mirror carries it out."""
    hub.add_image(APP, "1")
    status, out, _ = await run("warm", "app:1", "--detach")
    assert status == 0
    done = await Orders(mirror).ended(out.removeprefix("ordered: ").strip())
    assert done["result"] == "completed"
    status, out, _ = await run("sync", "--detach", "--json")
    done = await Orders(mirror).ended(json.loads(out)["order"])
    assert done["tags"] == {"unchanged": 1}


async def test_status(hub, mirror, run):
    """`sync --status` orders nothing: it tells what came of each image, what runs and waits, and of the schedule."""
    status, out, _ = await run("sync", "--status")
    assert (status, out) == (0, "no image has been looked at yet\nno scheduled runs: sync.interval is 0\n")
    hub.add_image(APP, "1")
    await Orders(mirror).warm("app:1", "app:none")
    await mirror.reload(sync={"interval": "1h"})
    await Orders(mirror).until(lambda state: state["last"]["schedule"] and not state["running"])
    hub.add_image(APP, "2", [b"x" * 50_000])
    gate = hub.gate(Rule(kind="cdn", times=None), after=100)
    orders = [await Orders(mirror).give("warm", images=["app:2"]) for _ in range(2)]
    orders.append(await Orders(mirror).give("warm", images=[f"app:{number}" for number in range(13)]))
    await Orders(mirror).until(lambda state: state["running"] and state["running"][0]["images"])
    status, out, complaint = await run("sync", "--status")
    assert (status, complaint) == (0, "")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[0] == "image result looked at fetched cause"
    assert lines[1].startswith(f"{NAME}:1 unchanged ")
    # One that upstream never had was a mistake in the order, whose result says so.
    assert not [line for line in lines if f"{NAME}:none" in line]
    assert f"running: warm by operator, 0 of 1 images done, order {orders[0]}" in lines
    assert f"waiting: warm by operator: app:2, order {orders[1]}" in lines
    few = "app:0, app:1, app:2, app:3, app:4, app:5, app:6, app:7, app:8, app:9 and 3 more"
    assert f"waiting: warm by operator: {few}, order {orders[2]}" in lines
    assert any(re.match(r"last scheduled run, .* completed in \d+s: 1 unchanged", line) for line in lines)
    assert lines[-2].startswith("next scheduled run in ")
    assert re.fullmatch(r"docker.io: \d+ of 100000 pulls left", lines[-1])
    status, out, _ = await run("sync", "--status", "--json")
    found = json.loads(out)
    assert [image["image"] for image in found["images"]] == [f"{NAME}:1"]
    (pulls,) = found["pulls"]
    assert (pulls["registry"], pulls["upstream"], pulls["limit"]) == ("docker.io", hub.registry_host, 100_000)
    gate.release()
    await Orders(mirror).ended(orders[1])


async def test_many_pages(hub, mirror, run):
    """`sync --status` tells of every image, however many there are."""
    result = {"result": "unchanged", "time": 1.0, "bytes_fetched": 0, "bytes_held": 0, "cause": "[bold]x[/bold] [/oops]"}
    for number in range(250):
        mirror.store.jobs.put_result(f"{NAME}:{number:03}", result)
    status, out, complaint = await run("sync", "--status")
    assert (status, complaint) == (0, "")
    assert sum(NAME in line for line in out.splitlines()) == 250
    assert "[bold]x[/bold] [/oops]" in out


async def test_interrupted(hub, mirror, tmp_path):
    """Ctrl-C ends the command, which says that the mirror goes on; and it does."""
    image = hub.add_image(APP, "1", [b"x" * 50_000])
    gate = hub.gate(Rule(kind="cdn", times=None), after=1000)
    async with begun(mirror, tmp_path, "warm", "app:1") as process:
        await asyncio.wait_for(gate.reached.wait(), LIMIT)
        # It has given the order; it watches a moment later.
        await Orders(mirror).until(lambda state: state["running"])
        await asked(mirror)
        process.send_signal(signal.SIGINT)
        out, complaint = await asyncio.wait_for(process.communicate(), LIMIT)
    assert process.returncode == 130
    # How far it is stands there only if it took more than ten seconds.
    assert [line for line in out.splitlines() if b" of " not in line] == []
    assert complaint.startswith(b"The mirror goes on; `registry-mirror sync --status` tells how far it is,\n")
    assert re.search(rb"^and `registry-mirror sync --cancel \d+-[0-9a-f]+` ends it.$", complaint, re.MULTILINE)
    assert named(mirror, "1") is None
    gate.release()
    state = await Orders(mirror).until(lambda state: state["last"]["warm"])
    assert state["last"]["warm"]["result"] == "completed"
    assert named(mirror, "1") == image.digest


async def asked(mirror):
    """Wait until the command has asked for its order."""
    operations, asked = mirror.sync_operations, asyncio.Event()
    loop, inner = asyncio.get_running_loop(), operations.job

    def job(name):
        loop.call_soon_threadsafe(asked.set)
        return inner(name)

    operations.job = job
    await asyncio.wait_for(asked.wait(), LIMIT)
    operations.job = inner


async def test_bars(hub, mirror, tmp_path):
    """On a terminal there are bars with bytes, rate and time left while it goes on, and lines of what has ended."""
    hub.add_image(APP, "1", [os.urandom(1_200_000)])
    hub.script(Rule(kind="cdn", times=None), Slow(800_000))
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    async with begun(mirror, tmp_path, "warm", "app:1", "app:none", terminal=theirs) as process:
        os.close(theirs)
        shown = await asyncio.wait_for(asyncio.to_thread(read_all, ours), LIMIT)
        assert await process.wait() == 1
    os.close(ours)
    assert "Traceback" not in shown
    for wanted in ("━", "MiB", "B/s", "0:00:0", f"{NAME}:none: gone", f"{NAME}:1: new, ", "failed in "):
        assert wanted in shown, wanted
    # The cursor is there again.
    assert shown.count("\x1b[?25h") == 1
