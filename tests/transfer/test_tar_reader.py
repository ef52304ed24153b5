"""Archives and compressed files, in pieces of any size."""

import gzip
import tarfile
import time

import pytest
from backports import zstd

from mirror.transfer.decompression import Decompressor
from mirror.transfer.errors import InvalidBundle
from mirror.transfer.tar_reader import Kind, Member, TarReader
from tests.support.names import MIB
from tests.transfer.bundles import Tar, header

LONG = "n" * 200


def read(data, step):
    """The members of an archive with their content, from pieces of `step` bytes."""
    decompressor, tar, found = Decompressor(), TarReader(), []
    for start in range(0, len(data), step):
        for piece in decompressor.feed(data[start : start + step]):
            for event in tar.feed(piece):
                if isinstance(event, Member):
                    found.append([event, b""])
                else:
                    found[-1][1] += event
    decompressor.close()
    tar.close()
    return found


def in_two(compress):
    """As two members or frames, one after the other."""
    return lambda data: compress(data[:700]) + compress(data[700:])


@pytest.mark.parametrize("layout", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("compress", [bytes, gzip.compress, zstd.compress, in_two(gzip.compress), in_two(zstd.compress)])
@pytest.mark.parametrize("step", [1, 7, 512, 1 << 20])
def test_archive_in_pieces(layout, compress, step):
    """Names, sizes, links and content do not depend on where the pieces end, nor on how a tar spells them."""
    tar = Tar(layout)
    tar.add("./blobs", type=tarfile.DIRTYPE).add("./blobs/", type=tarfile.DIRTYPE).add("blobs/one", b"x" * 1000)
    tar.add("é.json").add(LONG, b"long").add("a/layer.tar", type=tarfile.SYMTYPE, linkname=f"../{LONG}")
    found = read(compress(tar.close()), step)
    assert found == [
        [Member("blobs", Kind.DIRECTORY), b""],
        [Member("blobs", Kind.DIRECTORY), b""],
        [Member("blobs/one", Kind.FILE, 1000), b"x" * 1000],
        [Member("é.json", Kind.FILE), b""],
        [Member(LONG, Kind.FILE, 4), b"long"],
        [Member("a/layer.tar", Kind.LINK, target=f"../{LONG}"), b""],
    ]


def test_size_in_binary():
    """GNU tar writes sizes from 8 GiB on in binary."""
    reader = TarReader()
    block = bytearray(tarfile.TarInfo("large.tar").tobuf(tarfile.GNU_FORMAT))
    block[124:136] = b"\x80" + (9 << 30).to_bytes(11, "big")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    assert list(reader.feed(bytes(block))) == [Member("large.tar", Kind.FILE, 9 << 30)]


@pytest.mark.parametrize("compress", [gzip.compress, zstd.compress, in_two(gzip.compress), in_two(zstd.compress)])
@pytest.mark.parametrize("size", [MIB - 1, MIB, MIB + 1, 2 * MIB])
@pytest.mark.parametrize("step", [1000, 16 << 10, 1 << 20])
def test_size_of_whole_pieces(compress, size, step):
    """The last piece is as long as a piece may be: nothing is expected after it."""
    data, decompressor = bytes(size), Decompressor()
    packed = compress(data)
    found = [piece for at in range(0, len(packed), step) for piece in decompressor.feed(packed[at : at + step])]
    decompressor.close()
    assert b"".join(found) == data


def test_many_empty_members():
    """Each costs the same, however many there are in a block."""
    decompressor, empty = Decompressor(), gzip.compress(b"")
    began = time.process_time()
    assert b"".join(decompressor.feed(empty * (4 * MIB // len(empty)))) == b""
    assert time.process_time() - began < 10
    decompressor.close()


MALFORMED = [b"9 a=1234", b"9 a=123\n", b"8 a=123\n8", b" a=1\n", b"0 a=1\n", b"-5 a=\n", b"6 abc\n", b"x"]


@pytest.mark.parametrize("records", MALFORMED)
def test_malformed_records(records):
    reader = TarReader()
    with pytest.raises(InvalidBundle, match="an extended header is malformed"):
        list(reader.feed(header("pax", b"%011o" % len(records), b"x") + records + bytes(512 - len(records))))
