"""The names inside a bundle."""

import pytest

from mirror.core.digest import Digest
from mirror.transfer.layout import blob_digest, blob_path
from mirror.transfer.layout_folder import LayoutFolder
from mirror.transfer.tar_reader import Kind, Member, TarReader


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_name_of_a_blob_leads_back_to_its_digest(algorithm):
    digest = Digest.of(b"layer", algorithm)
    assert blob_path(digest) == f"blobs/{algorithm}/{digest.encoded}"
    assert blob_digest(blob_path(digest)) == digest


@pytest.mark.parametrize(
    "path",
    [
        "",
        "blobs",
        "blobs/sha256",
        "blobs/sha256/",
        "blobs/sha256/abc",
        f"blobs/md5/{'0' * 32}",
        f"blobs/sha256/{'A' * 64}",
        f"blobs/sha256/{'0' * 64}/layer.tar",
        f"./blobs/sha256/{'0' * 64}",
        f"other/sha256/{'0' * 64}",
        f"blobs/sha256/{'0' * 63}\n",
    ],
)
def test_other_names_are_no_blobs(path):
    assert blob_digest(path) is None


@pytest.fixture
def folder(tmp_path):
    """A layout with a blob of sha512, as a folder."""
    (tmp_path / "index.json").write_bytes(b"{}")
    (tmp_path / "blobs" / "sha512").mkdir(parents=True)
    (tmp_path / blob_path(Digest.of(b"layer", "sha512"))).write_bytes(b"layer")
    return tmp_path


def test_folder_with_long_names(folder):
    """The names of sha512 blobs have 141 characters, more than a plain header takes."""
    layout, reader = LayoutFolder.open(str(folder)), TarReader()
    data = b"".join(layout.pieces())
    assert len(data) == layout.size
    members = [event for event in reader.feed(data) if isinstance(event, Member)]
    reader.close()
    assert [(member.name, member.size) for member in members] == list(layout.files)


def test_folder_with_a_layer_of_8_gib(folder):
    """The size has more digits than a plain header takes."""
    large, size = folder / "blobs" / "sha256" / ("0" * 64), 8 << 30
    large.parent.mkdir()
    with large.open("wb") as file:
        file.truncate(size)
    layout = LayoutFolder.open(str(folder))
    assert layout.size > size
    name = blob_path(Digest.parse(f"sha256:{large.name}"))
    assert list(TarReader().feed(next(layout.pieces()))) == [Member(name, Kind.FILE, size)]
