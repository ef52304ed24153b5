"""Which content a runtime could unpack."""

import bz2
import gzip
import io
import json
import lzma
import tarfile

import pytest

from mirror.core.archives import HEAD_BYTES, is_archive


def tar(name="bin/sh", kind=tarfile.PAX_FORMAT):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=kind) as archive:
        entry = tarfile.TarInfo(name)
        entry.size = 4
        archive.addfile(entry, io.BytesIO(b"evil"))
    return data.getvalue()


def old_tar():
    """A header of version 7 of Unix, without the mark of later forms, named like the begin of a JSON text."""
    block = bytearray(tar('{"critical": "', tarfile.USTAR_FORMAT)[:HEAD_BYTES])
    block[257:265] = bytes(8)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


ZSTD = b"\x28\xb5\x2f\xfd"
ARCHIVES = [tar(), tar(kind=tarfile.GNU_FORMAT), old_tar(), gzip.compress(tar()), bz2.compress(tar()), lzma.compress(tar()), ZSTD]


@pytest.mark.parametrize("content", [*ARCHIVES, b"\x50\x2a\x4d\x18" + bytes(8), b"\x5f\x2a\x4d\x18"])
def test_archives(content):
    assert is_archive(content[:HEAD_BYTES])


@pytest.mark.parametrize(
    "content", [b"", b"{}", json.dumps({"a": "b" * 1000}).encode(), b"x" * 600, bytes(600), b"SPDXVersion: 2"]
)
def test_text(content):
    assert not is_archive(content[:HEAD_BYTES])
