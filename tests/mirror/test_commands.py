"""The commands that work on a mirror: `images`, `purge` and `verify`, as processes of their own."""

import asyncio
import json
import os
import pty

import pytest

from mirror.core.digest import Digest
from tests.mirror.commands import command, read_all
from tests.support.files import flip
from tests.support.launcher import start_mirror
from tests.support.mirrors import MirrorUnderTest
from tests.support.names import APP
from tests.support.ports import free_port
from tests.support.waiting import LIMIT


@pytest.fixture
def token(tmp_path):
    path = tmp_path / "token"
    path.write_text("s3cret\n")
    return path


@pytest.fixture
async def mirror(hub, tmp_path, token):
    """A mirror whose admin address wants a token."""
    async with MirrorUnderTest(hub, tmp_path / "store", admin={"token_file": str(token)}) as under_test:
        yield under_test


@pytest.fixture
def run(mirror, tmp_path, token):
    """Runs a command against `mirror`."""

    async def run(*arguments, token_file=token):
        address = ("--url", f"http://127.0.0.1:{mirror.admin_port}", "--token-file", str(token_file))
        return await command(*arguments, *address, directory=tmp_path)

    return run


async def pulled(hub, mirror, tag, **image):
    made = hub.add_image(APP, tag, **image)
    await mirror.get(f"/v2/{APP}/manifests/{tag}")
    for blob in [made.config, *made.layers]:
        await mirror.get(f"/v2/{APP}/blobs/{blob.digest}")
    await mirror.idle()
    return made


async def test_images(hub, mirror, run):
    """`images` is a table for people and a list for scripts, narrowed down by a pattern."""
    await pulled(hub, mirror, "1", layers=[os.urandom(3 << 20)])
    hub.add_image(APP, "2")
    await mirror.get(f"/v2/{APP}/manifests/2")
    status, out, complaint = await run("images")
    assert (status, complaint) == (0, "")
    first, second = (line for line in out.splitlines() if APP in line)
    assert "3MiB" in first
    assert "partial" not in first
    assert "partial" in second
    assert out.splitlines()[-2].startswith("docker.io: 2 images, 3MiB")
    assert out.splitlines()[-1] == "2 images"
    assert all(line == line.rstrip() for line in out.splitlines())
    status, out, _ = await run("images", "app:1", "--json")
    (listed,) = json.loads(out)
    assert (listed["name"], listed["complete"]) == (f"docker.io/{APP}:1", True)


@pytest.mark.parametrize(("order", "tags"), [("name", "123"), ("size", "231"), ("pulled", "312")])
async def test_images_in_order(hub, mirror, run, order, tags):
    """The largest first, or the one whose pull is the longest ago; for scripts, too."""
    for tag, size in (("3", 2 << 10), ("1", 1 << 10), ("2", 3 << 20)):
        await pulled(hub, mirror, tag, layers=[os.urandom(size)])
    _, out, _ = await run("images", "--sort", order, "--json")
    assert "".join(image["name"][-1] for image in json.loads(out)) == tags


async def test_purge(hub, mirror, run):
    """`purge` says what went of each image, and with --json says it for scripts; a dry run leaves all."""
    image = await pulled(hub, mirror, "1")
    await pulled(hub, mirror, "2")
    size = len(image.raw) + image.config.size + sum(layer.size for layer in image.layers)
    status, out, complaint = await run("purge", "app:1", "none", "--dry-run", "--json")
    assert (status, complaint) == (1, "registry-mirror: none is not held\n")
    assert json.loads(out) == [
        {"match": "app:1", "tags": 1, "manifests": 1, "blobs": 2, "bytes": size, "images": [f"docker.io/{APP}:1"]},
        {"match": "none", "tags": 0, "manifests": 0, "blobs": 0, "bytes": 0, "images": []},
    ]
    assert mirror.holds(image.digest)
    status, out, _ = await run("purge", "app:1", "--soft")
    assert (status, out.startswith(f"  docker.io/{APP}:1\napp:1: 1 tags")) == (0, True)
    assert "to be revalidated" in out
    status, out, _ = await run("purge", "app:1", "--older-than", "1d", "--json")
    assert (status, json.loads(out)[0]["tags"]) == (0, 0)
    assert (await run("purge", "none:*"))[0] == 0
    status, out, _ = await run("purge", "app:1")
    assert (status, out.rstrip().endswith("purged")) == (0, True)
    assert not mirror.holds(image.digest)


@pytest.mark.parametrize(("said", "more", "gone"), [(b"n\n", (), False), (b"y\n", (), True), (b"", ("--yes",), True)])
async def test_purge_on_a_terminal(hub, mirror, token, tmp_path, said, more, gone):
    """On a terminal it lists what goes, and asks before anything is removed; --yes does not ask."""
    image = await pulled(hub, mirror, "1")
    ours, theirs = pty.openpty()
    address = ("--url", f"http://127.0.0.1:{mirror.admin_port}", "--token-file", str(token))
    try:
        os.write(ours, said)
        process = await start_mirror("purge", "app:1", *more, *address, directory=tmp_path, terminal=theirs)
        os.close(theirs)
        shown = await asyncio.wait_for(asyncio.to_thread(read_all, ours), LIMIT)
        assert await process.wait() == (0 if gone else 1)
    finally:
        os.close(ours)
    assert f"docker.io/{APP}:1" in shown
    assert ("Remove 1 images?" in shown) is (not more)
    assert mirror.holds(image.digest) is not gone


async def test_configuration_says_where(hub, mirror, tmp_path, token):
    """Without options the address and the token are those of the configuration."""
    await pulled(hub, mirror, "1")
    (tmp_path / "mirror.yaml").write_text(f"admin: {{listen: '127.0.0.1:{mirror.admin_port}', token_file: {token}}}\n")
    status, out, _ = await command("images", "--json", directory=tmp_path)
    assert (status, len(json.loads(out))) == (0, 1)


async def test_mirror_that_does_not_run(tmp_path, token):
    """If no mirror answers, one line says where it was looked for."""
    port = free_port()
    for arguments in (("images",), ("purge", "nginx")):
        status, out, complaint = await command(
            *arguments, "--url", f"http://127.0.0.1:{port}", "--token-file", str(token), directory=tmp_path
        )
        (line,) = complaint.splitlines()
        assert (status, out) == (1, "")
        assert line.startswith(f"registry-mirror: the mirror at http://127.0.0.1:{port} does not answer: ")


async def test_wrong_token(mirror, run, tmp_path):
    """A token that is refused is told as what it is, with what to do about it, and is not shown."""
    wrong = tmp_path / "wrong"
    wrong.write_text("wr0ng")
    status, _, complaint = await run("purge", "nginx", token_file=wrong)
    (line,) = complaint.splitlines()
    assert status == 1
    assert "401" in line
    assert "--token-file" in line
    assert "wr0ng" not in line


async def test_token_file_that_is_not_there(run, tmp_path):
    """A token file that cannot be read is named; nothing is asked without it."""
    status, _, complaint = await run("images", token_file=tmp_path / "none")
    (line,) = complaint.splitlines()
    assert status == 2
    assert str(tmp_path / "none") in line


@pytest.mark.parametrize("url", ["nonsense", "ftp://x", "http://127.0.0.1:notaport", "http://"])
async def test_address_that_is_none(tmp_path, token, url):
    """An address that cannot be one is refused by the option's name."""
    status, _, complaint = await command("images", "--url", url, "--token-file", str(token), directory=tmp_path)
    (line,) = complaint.splitlines()
    assert (status, line.startswith("registry-mirror: --url: ")) == (2, True)


async def test_somebody_else_answers(hub, tmp_path, token):
    """An address where no mirror's admin interface is, is told as that."""
    status, _, complaint = await command("images", "--url", hub.url, "--token-file", str(token), directory=tmp_path)
    assert status == 1
    assert "Traceback" not in complaint


async def test_refused_order(run):
    """What the mirror refuses is told in its words."""
    status, _, complaint = await run("purge", "UPPER")
    assert status == 1
    assert "match: invalid name 'UPPER'" in complaint


async def test_admin_without_a_token_on_other_addresses(tmp_path):
    """A start is refused where others could administrate without a token."""
    (tmp_path / "mirror.yaml").write_text("admin: {listen: '0.0.0.0:0'}\n")
    status, _, complaint = await command("serve", directory=tmp_path)
    assert status == 2
    assert complaint.startswith("registry-mirror: admin: ")
    assert "token_file" in complaint


# ---- verify


async def verify(tmp_path, *arguments):
    (tmp_path / "mirror.yaml").write_text(f"storage: {{path: {tmp_path}/store}}\n")
    return await command("verify", *arguments, directory=tmp_path)


async def test_verify(hub, mirror, tmp_path):
    """Beside a serving mirror, a flipped bit is found, dropped, and fetched again by the next pull."""
    image = await pulled(hub, mirror, "1", layers=[os.urandom(100_000), os.urandom(50_000)])
    paths = [mirror.blob_path(image.layers[0].digest), mirror.blob_path(image.digest)]
    status, out, _ = await verify(tmp_path, "--json")
    assert (status, json.loads(out)) == (0, {"checked": 4, "wrong": 0})
    for path in paths:
        flip(path)
    status, out, _ = await verify(tmp_path, "--json")
    assert (status, json.loads(out)) == (1, {"checked": 4, "wrong": 2})
    assert not any(path.exists() for path in paths)
    assert mirror.store.quota.figures()[1] == 2
    hub.reset_counters()
    answer = await mirror.get(f"/v2/{APP}/manifests/1")
    assert (answer.body, hub.count("GET", "manifest")) == (image.raw, 1)
    answer = await mirror.get(f"/v2/{APP}/blobs/{image.layers[0].digest}")
    assert (answer.cache, answer.sha256) == ("MISS", image.layers[0].digest)
    await mirror.idle()
    status, out, _ = await verify(tmp_path)
    assert (status, out) == (0, "4 blobs checked, 0 wrong\n")


async def test_verify_at_a_rate(mirror, tmp_path):
    """The rate is a limit, and nonsense is refused by the option's name."""
    data = os.urandom(3 << 20)
    mirror.store.files.put(Digest.of(data), data)
    loop = asyncio.get_running_loop()
    started = loop.time()
    status, _, _ = await verify(tmp_path, "--rate", "2MiB")
    assert (status, loop.time() - started > 1.0) == (0, True)
    status, _, complaint = await verify(tmp_path, "--rate", "fast")
    assert (status, complaint.startswith("registry-mirror: --rate: ")) == (2, True)


async def test_verify_of_another_layout(tmp_path):
    """A store of another layout is refused, and nothing in it is touched."""
    store = tmp_path / "store"
    store.mkdir()
    (store / "LAYOUT").write_text("registry-mirror store, layout 99\n")
    status, _, complaint = await verify(tmp_path)
    assert (status, "layout 99" in complaint) == (2, True)
    assert (store / "LAYOUT").read_text() == "registry-mirror store, layout 99\n"


@pytest.mark.parametrize("made", [False, True])
async def test_verify_creates_no_store(tmp_path, made):
    """Where there is no store, `verify` says so and makes none, neither of nothing nor of a directory of something else."""
    store = tmp_path / "store"
    if made:
        (store / "photos").mkdir(parents=True)
    status, out, complaint = await verify(tmp_path)
    assert (status, out) == (2, "")
    assert complaint.startswith("registry-mirror: storage.path: ")
    assert str(store) in complaint
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert left == {"mirror.yaml"} | ({"store", "store/photos"} if made else set())
