"""`export` as an operator uses it: a process of its own, against a running mirror."""

import asyncio
import fcntl
import json
import os
import pty
import re
import signal
import struct
import termios
from pathlib import Path

import pytest

from mirror.cli.byte_progress import byte_progress
from mirror.core.digest import Digest
from tests.fakehub import Rule, Slow
from tests.fakehub.catalog import layer
from tests.mirror.commands import begun, command, read_all
from tests.support.bundles import BundleRead
from tests.support.names import APP, MIB, content
from tests.support.waiting import LIMIT

NAME = f"docker.io/{APP}"
AMD64, ARM64 = "linux/amd64", "linux/arm64"


@pytest.fixture
def run(mirror, tmp_path):
    """Runs a command against `mirror`."""

    async def run(*arguments):
        return await command(*arguments, "--url", f"http://127.0.0.1:{mirror.admin_port}", directory=tmp_path)

    return run


async def test_file(hub, run, tmp_path):
    """The bundle appears under its name with the usual rights, nothing beside it; a line says what it has of each image."""
    image = hub.add_image(APP, "1", platforms=[AMD64, ARM64])
    hub.add_referrer(APP, image.digest)
    (tmp_path / "out").mkdir()
    status, out, complaint = await run("export", "app:1", "-o", "out/bundle.tar")
    assert (status, complaint) == (0, "")
    assert out.splitlines()[0] == f"{NAME}:1: {AMD64}; without {ARM64}; 1 attached"
    assert re.fullmatch(r"out/bundle.tar: 1 image, [\d.]+KiB in \d+s", out.splitlines()[1])
    assert os.listdir(tmp_path / "out") == ["bundle.tar"]
    path = tmp_path / "out" / "bundle.tar"
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask()
    assert BundleRead(path.read_bytes()).images == {f"{NAME}:1": image.digest}


def umask():
    found = os.umask(0o022)
    os.umask(found)
    return found


async def test_standard_output(hub, mirror, tmp_path):
    """`-o -` writes the bundle into a pipe, and what is said to people elsewhere."""
    image = hub.add_image(APP, "1")
    async with begun(mirror, tmp_path, "export", "app:1", "-o", "-") as process:
        out, complaint = await asyncio.wait_for(process.communicate(), LIMIT)
    assert BundleRead(out).images == {f"{NAME}:1": image.digest}
    assert complaint.startswith(f"{NAME}:1: {AMD64}\n".encode())


async def test_json(hub, run, tmp_path):
    """--json tells what came of it, and nothing else."""
    image = hub.add_image(APP, "1")
    status, out, complaint = await run("export", "app:1", "-o", "bundle.tar", "--json")
    said = json.loads(out)
    assert (status, complaint, said["result"], said["file"]) == (0, "", "completed", "bundle.tar")
    assert said["size"] == (tmp_path / "bundle.tar").stat().st_size
    assert said["contents"][0]["digest"] == image.digest


async def test_from_files(hub, run, tmp_path):
    """Images come from files, each with the platform that its file names, unless others are asked for."""
    for tag in ("1", "2"):
        hub.add_image(APP, tag, platforms=[AMD64, ARM64])
    (tmp_path / "compose.yaml").write_text(f"services: {{a: {{image: app:1, platform: {ARM64}}}, b: {{image: app:2}}}}")
    status, out, _ = await run("export", "--from", "compose.yaml", "-o", "bundle.tar")
    assert status == 0
    assert out.splitlines()[:2] == [f"{NAME}:1: {ARM64}; without {AMD64}", f"{NAME}:2: {AMD64}; without {ARM64}"]
    status, out, _ = await run("export", "--from", "compose.yaml", "-o", "bundle.tar", "--platform", AMD64)
    assert [line.partition("; ")[0] for line in out.splitlines()[:2]] == [f"{NAME}:{tag}: {AMD64}" for tag in ("1", "2")]


async def test_since(hub, run, tmp_path):
    """--since leaves out the layers of earlier bundles, plain or compressed, and --exclude those that are named."""
    layers = [layer({str(number): os.urandom(10)}) for number in range(4)]
    image = hub.add_image(APP, "1", layers=layers)
    for number in range(2):
        hub.add_image(APP, f"base{number}", layers=[layers[number]])
        assert (await run("export", f"app:base{number}", "-o", f"{number}.tar"))[0] == 0
    process = await asyncio.create_subprocess_exec("gzip", "1.tar", cwd=tmp_path)
    assert await process.wait() == 0
    excluded = image.layers[2].digest
    status, *said = await run("export", "app:1", "-o", "2.tar", "--since", "0.tar", "--since", "1.tar.gz", "--exclude", excluded)
    assert status == 0, said
    bundle = BundleRead((tmp_path / "2.tar").read_bytes())
    assert bundle.blobs.keys() == {image.digest, image.config.digest, image.layers[3].digest}
    assert bundle.left_out(f"{NAME}:1") == [one.digest for one in image.layers[:3]]


async def test_what_is_no_earlier_bundle(run, tmp_path):
    """A mistake in --since is named before anything is asked of the mirror."""
    (tmp_path / "old.tar").write_bytes(b"no tar")
    status, out, complaint = await run("export", "app:1", "-o", "new.tar", "--since", "old.tar")
    assert (status, out, len(complaint.splitlines())) == (2, "", 1)
    assert complaint.startswith("registry-mirror: --since old.tar: it is no tar, or was cut")


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("-o", "x.tar"), 2, "name an image, or a file with --from"),
        (("app",), 2, "name the bundle: -o FILE, or -o - for standard output"),
        (("app", "-o", "-", "--json"), 2, "--json and the bundle would both go to standard output"),
        (("app", "-o", "."), 1, ".: it is a directory"),
        (("app", "-o", "none/x.tar"), 1, "none/x.tar: No such file or directory"),
        (("app:none", "-o", "x.tar"), 1, f"refuses (404): {NAME}:none: "),
        (("app", "--platform", "arm64", "-o", "x.tar"), 1, "refuses (400): platforms: invalid platform 'arm64'"),
    ],
)
async def test_mistakes(run, tmp_path, arguments, status, said):
    """Each is one line, and no file is left."""
    found, out, complaint = await run("export", *arguments)
    assert (found, out, len(complaint.splitlines())) == (status, "", 1), complaint
    assert said in complaint
    assert [path.name for path in Path(tmp_path).iterdir() if path.name != "store"] == []


async def test_each_image_is_named(run):
    """Of several images that cannot be exported each has a line."""
    status, _, complaint = await run("export", "app:none", "app:void", "-o", "x.tar")
    first, second = complaint.splitlines()
    assert status == 1
    assert f"{NAME}:none: " in first
    assert second.startswith(f"registry-mirror: {NAME}:void: ")


async def held_up(hub, mirror):
    """An image of which a part has arrived, and the gate before the rest."""
    hub.add_image(APP, "1", layers=[content(MIB)])
    return hub.gate(Rule(kind="cdn", times=None), after=300_000)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_interrupted(hub, mirror, tmp_path, number):
    """A command that is interrupted leaves no file behind, and the one that was there stays."""
    gate = await held_up(hub, mirror)
    (tmp_path / "bundle.tar").write_text("old")
    async with begun(mirror, tmp_path, "export", "app:1", "-o", "bundle.tar") as process:
        await asyncio.wait_for(gate.reached.wait(), LIMIT)
        process.send_signal(number)
        out, complaint = await asyncio.wait_for(process.communicate(), LIMIT)
    assert (process.returncode, out, complaint) == (130, b"", b"interrupted: nothing was written\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle.tar", "store"]
    assert (tmp_path / "bundle.tar").read_text() == "old"
    gate.release()


async def test_bundle_that_ends_short(hub, mirror, tmp_path, monkeypatch):
    """It does not appear, and the reason is told."""
    monkeypatch.setattr("mirror.transfer.pins._MAX_PINS", 2)
    image = hub.add_image(APP, "1", layers=[content(24 * MIB), b"the last"])
    os.mkfifo(tmp_path / "pipe")
    async with begun(mirror, tmp_path, "export", "app:1", "-o", "pipe") as process:
        pipe = await asyncio.to_thread(os.open, tmp_path / "pipe", os.O_RDONLY)
        await asyncio.to_thread(os.read, pipe, 1000)
        mirror.store.files.delete(Digest.parse(image.layers[1].digest))
        reading = asyncio.create_task(asyncio.to_thread(drain, pipe))
        _, complaint = await asyncio.wait_for(process.communicate(), LIMIT)
        await reading
    assert process.returncode == 1
    lost = f"{NAME}:1: {image.layers[1].digest} has left the store meanwhile"
    assert re.fullmatch(
        rf"registry-mirror: the bundle was cut after \d+ of \d+ bytes, and is of no use: {lost}\n", complaint.decode()
    )


def drain(pipe):
    with open(pipe, "rb") as file:
        while file.read(1 << 20):
            pass


async def test_mirror_ends(hub, mirror, tmp_path):
    """A mirror that stops in the middle is noticed, and nothing is left."""
    gate = await held_up(hub, mirror)
    async with begun(mirror, tmp_path, "export", "app:1", "-o", "bundle.tar") as process:
        await asyncio.wait_for(gate.reached.wait(), LIMIT)
        mirror.stop()
        await mirror.stopped()
        out, complaint = await asyncio.wait_for(process.communicate(), LIMIT)
    assert (process.returncode, out) == (1, b"")
    assert b"does not answer" in complaint
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


async def test_bar(hub, mirror, tmp_path):
    """On a terminal a bar shows what is fetched, and then what is written; it goes when all is done."""
    hub.add_image(APP, "1", layers=[content(MIB)])
    hub.script(Rule(kind="cdn", times=None), Slow(800_000))
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    async with begun(mirror, tmp_path, "export", "app:1", "-o", "bundle.tar", terminal=theirs) as process:
        os.close(theirs)
        shown = await asyncio.wait_for(asyncio.to_thread(read_all, ours), LIMIT)
        assert await process.wait() == 0
    os.close(ours)
    for wanted in ("━", f"fetching {NAME}:1 (1 of 1)", "MiB", "B/s", f"{NAME}:1: {AMD64}", "bundle.tar: 1 image, 1"):
        assert wanted in shown, wanted
    assert shown.count("\x1b[?25h") == 1


def test_lines_in_a_log(monkeypatch, capsys):
    """Without a terminal there is a line now and then."""
    with byte_progress(quiet=False) as show:
        show("writing x", 1, 2)
        monkeypatch.setattr("mirror.cli.byte_progress._LINE_INTERVAL_S", 0.0)
        show("writing x", 1 << 20, 1 << 21)
        show("writing y", 5, None)
    with byte_progress(quiet=True) as show:
        show("writing z", 1, 2)
    assert capsys.readouterr().err == "writing x: 1MiB of 2MiB\nwriting y: 5B\n"
