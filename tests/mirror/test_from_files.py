"""`warm` and `sync` with the images that files name."""

import pytest

from tests.mirror.commands import command
from tests.mirror.syncing import pull
from tests.support.names import APP

NAME = f"docker.io/{APP}"


@pytest.fixture
def run(mirror, tmp_path):
    async def run(*arguments):
        return await command(*arguments, "--url", f"http://127.0.0.1:{mirror.admin_port}", directory=tmp_path)

    return run


async def test_warm_from_files(hub, mirror, run, tmp_path):
    """Each image is fetched once, for the platform that its file asks for, with the variables beside the file."""
    for tag in ("1", "2", "3"):
        hub.add_image(APP, tag, [tag.encode()])
    image = hub.add_image(APP, "4", platforms=["linux/amd64", "linux/arm64"])
    (tmp_path / ".env").write_text("VERSION=2\n")
    (tmp_path / "compose.yaml").write_text("services: {a: {image: 'app:$VERSION'}, b: {image: app:4, platform: linux/arm64}}")
    (tmp_path / "images.txt").write_text("app:2\napp:3 # the third\n")
    status, out, complaint = await run("warm", "app:1", "--from", "compose.yaml", "--from", "images.txt")
    assert (status, complaint) == (0, "")
    names = [line.split(": ")[0] for line in out.splitlines() if ": new, " in line]
    assert sorted(names) == [f"{NAME}:{tag}" for tag in ("1", "2", "3", "4")]
    assert [mirror.holds(child.digest) for child in image.children.values()] == [False, True]


async def test_sync_from_a_file(hub, mirror, run, tmp_path):
    """Nothing else is looked at."""
    for tag in ("1", "2"):
        hub.add_image(APP, tag, [tag.encode()])
        await pull(mirror, APP, tag)
    (tmp_path / "Dockerfile").write_text("FROM app:2\n")
    status, out, complaint = await run("sync", "--from", "Dockerfile")
    assert (status, complaint) == (0, "")
    assert out.splitlines()[0] == f"{NAME}:2: unchanged"
    assert f"{NAME}:1" not in out


async def test_mistakes_order_nothing(hub, mirror, run, tmp_path):
    """Every mistake of every file is named by file and line, and upstream is asked for nothing."""
    (tmp_path / "images.txt").write_text("app:1\nApp:1\n")
    (tmp_path / "compose.yaml").write_text("services:\n  a: {image: 'app:$NO_SUCH'}\n")
    (tmp_path / "latin.txt").write_bytes(b"\xe9\n")
    (tmp_path / "built.yaml").write_text("services:\n  a: {build: .}\n")
    before = len(hub.requests)
    files = ("images.txt", "compose.yaml", "latin.txt", "missing.txt")
    status, out, complaint = await run("warm", *(word for file in files for word in ("--from", file)))
    assert (status, out) == (2, "")
    lines = complaint.splitlines()
    assert lines[0].startswith("registry-mirror: images.txt:2: ")
    assert lines[1:] == [
        "registry-mirror: compose.yaml:2: NO_SUCH is not set and has no default",
        "registry-mirror: latin.txt: cannot be read: it is not UTF-8",
        "registry-mirror: missing.txt: cannot be read: No such file or directory",
    ]
    status, _, complaint = await run("sync", "--from", "built.yaml")
    assert status == 2
    assert complaint.splitlines() == [
        "built.yaml:2: service a is built: its Dockerfile names what that takes",
        "registry-mirror: built.yaml: no image is left to fetch",
    ]
    status, _, complaint = await run("warm")
    assert (status, complaint) == (2, "registry-mirror: name an image, or a file with --from\n")
    assert len(hub.requests) == before
