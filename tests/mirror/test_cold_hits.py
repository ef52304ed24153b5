"""What would make the event loop stand still: a file that is not in memory, and manifests that are large."""

import asyncio
import json
import os
import socket
import subprocess
import threading

import pytest

from mirror.core.digest import Digest
from mirror.core.manifest import parse_manifest
from tests.support.names import APP, KIB, MIB, blob_path, content, manifest_path
from tests.support.waiting import LIMIT, SOON, NotInTime, eventually

DATA = content(9 * MIB)


@pytest.fixture
def tmp_path(disk_path):
    """Where the store lies."""
    return disk_path


async def forget(path):
    """Have the kernel keep nothing of a file in memory; skips where it cannot be told."""

    def dropped():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        # Not by a look of our own, which would make the kernel begin to read ahead.
        command = ["fincore", "--bytes", "--noheadings", "--output", "RES", path]
        return not int(subprocess.run(command, check=True, capture_output=True, text=True, timeout=LIMIT).stdout)

    try:
        await eventually(dropped, limit=SOON)
    except NotInTime:
        pytest.skip("this file system has no page cache of its own")


@pytest.fixture
def brought(monkeypatch):
    """The parts that were brought in, each with whether that was in a thread."""
    parts = []
    from mirror.listener import responses

    real = responses.bring_in

    def bring_in(descriptor, start, stop, ahead):
        parts.append((start, stop, threading.current_thread() is not threading.main_thread()))
        real(descriptor, start, stop, ahead)

    monkeypatch.setattr(responses, "bring_in", bring_in)
    return parts


async def test_cold_file_is_read_in_a_thread(hub, mirror, brought):
    """A held blob that is not in memory is brought in by a thread before it is sent; in memory, it is sent as it is."""
    path = blob_path(digest := hub.add_blob(APP, DATA))
    await mirror.get(path)
    await mirror.idle()
    await forget(mirror.blob_path(digest))
    assert (await mirror.get(path)).body == DATA
    assert brought
    assert brought[0][0] == 0
    assert all(in_thread for *_, in_thread in brought)
    brought.clear()
    assert (await mirror.get(path)).body == DATA
    assert brought == []


async def test_only_what_is_asked_for_is_brought_in(hub, mirror, brought):
    """A range of a cold file costs that range."""
    path = blob_path(digest := hub.add_blob(APP, DATA))
    await mirror.get(path)
    await mirror.idle()
    await forget(mirror.blob_path(digest))
    stop = 8 * MIB + 100 * KIB
    answer = await mirror.get(path, headers={"Range": f"bytes={8 * MIB}-{stop - 1}"})
    assert answer.body == DATA[8 * MIB : stop]
    assert [part[:2] for part in brought] == [(8 * MIB, stop)]


async def test_what_is_dropped_meanwhile(hub, mirror, brought, monkeypatch):
    """Bytes that leave memory while a slow client reads are brought in by a thread, too."""
    digest = hub.add_blob(APP, data := content(16 * MIB))
    await mirror.get(blob_path(digest))
    await mirror.idle()
    in_memory = len(data)
    monkeypatch.setattr("mirror.listener.file_sender.resident_until", lambda _, start, stop: min(stop, max(start, in_memory)))
    with await asyncio.to_thread(socket.create_connection, ("127.0.0.1", mirror.port), LIMIT) as client:
        client.sendall(f"GET {blob_path(digest)} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        begun = await asyncio.to_thread(client.recv, KIB)
        # More than the buffers of the connection hold.
        in_memory = 10 * MIB
        assert brought == []
        got = bytearray(begun.partition(b"\r\n\r\n")[2])
        while len(got) < len(data) and (piece := await asyncio.to_thread(client.recv, MIB)):
            got += piece
    assert got == data
    assert brought[0] == (10 * MIB, 14 * MIB, True)
    assert all(in_thread for *_, in_thread in brought)


def manifest(hub, padding):
    """The manifest of an image, with so many bytes of annotations."""
    raw = json.loads(hub.add_image(APP, None).raw)
    raw["annotations"] = {"padding": "x" * padding}
    return json.dumps(raw).encode()


@pytest.mark.parametrize(("padding", "in_thread"), [(10, False), (512 << 10, True)])
async def test_large_manifests_are_hashed_in_a_thread(hub, mirror, monkeypatch, padding, in_thread):
    """Parsing and hashing a large manifest leaves the event loop, when it comes and when it is served; a small one does not."""
    where = []

    def parse(*args):
        where.append(threading.current_thread() is not threading.main_thread())
        return parse_manifest(*args)

    def of(data, algorithm="sha256"):
        where.append(threading.current_thread() is not threading.main_thread())
        return digest_of(data, algorithm)

    raw = manifest(hub, padding)
    digest = hub.add_manifest(APP, raw, "application/vnd.oci.image.manifest.v1+json", tag="1")
    digest_of = Digest.of
    monkeypatch.setattr("mirror.upstream.registry.parse_manifest", parse)
    monkeypatch.setattr("mirror.cache.content.Digest.of", of)
    for _ in range(2):
        assert (await mirror.get(manifest_path(digest))).body == raw
        mirror.store.generation.change()
    assert len(where) >= 3
    assert set(where) == {in_thread}
