"""Which content is a document, and which could be unpacked by a runtime."""

import bz2
import gzip
import io
import json
import lzma
import tarfile

import pytest

from mirror.core.archives import HEAD_BYTES, is_document


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


def text_tar(stated):
    """A header that is text but for its checksum, which is the bytes that `stated` makes of the number."""
    block = bytearray(b'{"critical": "' + b" " * (HEAD_BYTES - 14))
    block[124:136] = b"00000000004 "
    block[156:157] = b"0"
    block[148:156] = b" " * 8
    block[148:156] = stated(sum(block[:512])).ljust(8)
    return bytes(block)


TEXT_TARS = [
    text_tar(lambda total: b"%06o" % total),
    text_tar(lambda total: b"%06o\0X" % total),
    text_tar(lambda total: b"0_%05o" % total),
    # Go skips what Python takes for the end.
    text_tar(lambda total: b"\0%06o" % total),
]
ZSTD = b"\x28\xb5\x2f\xfd"
COMPRESSED = [gzip.compress(tar()), bz2.compress(tar()), lzma.compress(tar()), ZSTD, b"BZh91AY&SYtext"]
ARCHIVES = [tar(), tar(kind=tarfile.GNU_FORMAT), old_tar(), *TEXT_TARS, *COMPRESSED]
OTHERS = [b"\x50\x2a\x4d\x18" + bytes(8), b"\x5f\x2a\x4d\x18", b"PK\3\4", b"hsqs\7\0\0\0", bytes(600), b"{}\0", b"\xff" * 10]


@pytest.mark.parametrize("content", [*ARCHIVES, *OTHERS])
def test_archives(content):
    assert not is_document(content[:HEAD_BYTES])


@pytest.mark.parametrize("content", TEXT_TARS[:-1])
def test_the_archives_of_the_test_can_be_read(content):
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        assert archive.getmembers()[0].size == 4


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        json.dumps({"a": "b" * 5000}).encode(),
        b"x" * 600,
        b"SPDXVersion: 2\r\n\t",
        b"x" + "é".encode() * HEAD_BYTES,
        b'\xef\xbb\xbf<?xml version="1.0"?>',
        b"\xd2\x84\x58\x00\xa0" + bytes(range(256)) * 20,
    ],
)
def test_documents(content):
    assert is_document(content[:HEAD_BYTES])
