"""The command `import`: files, folders, what is refused, and what it prints."""

import asyncio
import http.client
import io
import json
import signal
import socket
import tarfile

import pytest

from mirror.cli.client import AdminClient, Refused
from mirror.transfer.bundle_import import BundleImport
from tests.mirror.commands import begun, command
from tests.support.waiting import LIMIT, eventually
from tests.transfer.bundles import ATTACHED, Image, Index, bundle, contents, docker_save, layout, named

APP = "docker.io/library/app"


async def test_files_and_folders(mirror, tmp_path):
    """Whatever is whole is imported, everything else is named with its file, and the exit status says so."""
    image, index = Image(b"one"), Index(Image(b"amd"), Image(b"arm", architecture="arm64"))
    (tmp_path / "save.tar").write_bytes(docker_save("app:saved", "quay.io/other/app:1"))
    (tmp_path / "cut.tar").write_bytes(bundle(f"{APP}:cut", image)[:-2000])
    with tarfile.open(fileobj=io.BytesIO(layout([named(index, f"{APP}:folder")], contents(index)))) as tar:
        tar.extractall(tmp_path / "folder", filter="data")
    (tmp_path / "empty").mkdir()
    url = f"http://127.0.0.1:{mirror.admin_port}"
    files = ["save.tar", "cut.tar", "folder", "empty", "missing.tar"]

    status, out, complaint = await command("import", "--url", url, *files, directory=tmp_path)

    assert status == 1
    assert f"{APP}:saved: imported, sha256:" in out
    assert "the mirror has made one" in out
    assert f"{APP}:folder: imported, {index.digest}; linux/amd64, linux/arm64" in out
    complaints = complaint.splitlines()
    for text in (
        "registry-mirror: save.tar: quay.io/other/app:1: registry quay.io is not mirrored here",
        f"registry-mirror: cut.tar: {url} refuses (400): invalid bundle: it ends before the end mark",
        "registry-mirror: empty: invalid bundle: the folder has no index.json",
        "registry-mirror: missing.tar: No such file or directory",
    ):
        assert any(line.startswith(text) for line in complaints), complaint
    assert len(complaints) == 4


async def test_json_and_a_name(mirror, tmp_path):
    image = Image(b"one")
    (tmp_path / "bundle.tar").write_bytes(layout([image.descriptor()], contents(image)))
    url = f"http://127.0.0.1:{mirror.admin_port}"
    status, out, _ = await command("import", "--url", url, "--json", "--as", "app:2", "bundle.tar", directory=tmp_path)
    (result,) = json.loads(out)
    assert (status, result["file"], result["images"][0]["name"]) == (0, "bundle.tar", f"{APP}:2")


async def test_a_signature_that_moves_is_said(mirror, tmp_path):
    image, url = Image(b"one"), f"http://127.0.0.1:{mirror.admin_port}"
    name = f"{APP}:sha256-{image.digest[7:]}.sig"
    signatures = [Image(b"old"), Image(b"new")]
    for signature in signatures:
        entries = [named(image, f"{APP}:1"), signature.descriptor(annotations={ATTACHED: name})]
        (tmp_path / "bundle.tar").write_bytes(layout(entries, contents(image, signature)))
        status, out, _ = await command("import", "--url", url, "bundle.tar", directory=tmp_path)
        assert status == 0
    assert f"{name}: moved from {signatures[0].digest} to {signatures[1].digest}" in out
    assert "1 signatures and other referrers" in out


async def test_interrupted_when_the_mirror_has_it_all(mirror, tmp_path, monkeypatch):
    """Ctrl-C ends the command, not the import, and the command says so."""
    image, reached, go_on, real = Image(b"one"), asyncio.Event(), asyncio.Event(), BundleImport.finish

    async def finish(self):
        reached.set()
        await go_on.wait()
        return await real(self)

    monkeypatch.setattr(BundleImport, "finish", finish)
    (tmp_path / "bundle.tar").write_bytes(bundle(f"{APP}:1", image))
    async with asyncio.timeout(LIMIT), begun(mirror, tmp_path, "import", "bundle.tar") as process:
        await reached.wait()
        process.send_signal(signal.SIGINT)
        _, complaint = await process.communicate()
    assert process.returncode == 130
    assert "the mirror has all of bundle.tar, and goes on with the import" in complaint.decode()
    go_on.set()
    await eventually(lambda: mirror.holds(image.digest))


def test_long_work_after_the_last_byte(monkeypatch, tmp_path):
    """The command waits as long as the mirror answers late; only a host that is gone ends the wait."""
    seen = []

    class Connection(http.client.HTTPConnection):
        def getresponse(self):
            seen.append((self.sock.gettimeout(), self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)))
            raise http.client.RemoteDisconnected

    (tmp_path / "token").write_text("t0ken")
    monkeypatch.setattr(http.client, "HTTPConnection", Connection)
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(Refused):
        AdminClient(None, f"http://127.0.0.1:{server.getsockname()[1]}", tmp_path / "token").upload("/", "x/y", [b"1"], 1)
    assert seen == [(None, 1)]
