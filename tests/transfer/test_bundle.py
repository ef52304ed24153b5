"""A bundle that a mirror writes is one that a mirror reads."""

import pytest

from mirror.core.digest import Digest
from mirror.core.media import OCI_MANIFEST
from mirror.core.names import Repository, Tag
from mirror.transfer import tar_writer
from mirror.transfer.bundle import Bundle, Entry
from mirror.transfer.documents import read_images
from mirror.transfer.errors import InvalidBundle
from mirror.transfer.layout import blob_path
from mirror.transfer.tar_reader import Member, TarReader

APP = Repository("docker.io", "library/app")


def bundle(images, algorithm="sha256"):
    """A bundle with a blob for each image."""
    made = Bundle()
    for number in range(images):
        digest = Digest.of(b"%d" % number, algorithm)
        made.add(Entry(APP, Tag(f"v{number}"), digest, OCI_MANIFEST, 1), [(digest, 1)])
    return made


def written(made):
    """The bytes of a finished bundle."""
    parts = [(blob_path(digest), bytes(blob.size)) for digest, blob in made.blobs.items()]
    members = [
        tar_writer.header(name, len(data)) + data + tar_writer.padding(len(data)) for name, data in [*parts, *made.documents]
    ]
    return b"".join(members) + tar_writer.END


@pytest.fixture
def limit(monkeypatch):
    """Set a limit for who writes and who reads."""

    def set_(name, value, reader):
        for module in ("bundle", reader):
            monkeypatch.setattr(f"mirror.transfer.{module}.{name}", value)

    return set_


@pytest.mark.parametrize(("algorithm", "headers"), [("sha256", 1), ("sha512", 2)])
def test_members(limit, algorithm, headers):
    """A blob of sha512 has two headers, since its name is long."""
    limit("MAX_MEMBERS", 4 * headers + 3, "tar_reader")
    made = bundle(4, algorithm)
    size = made.finish()
    data, reader = written(made), TarReader()
    assert len(data) == size
    assert sum(isinstance(event, Member) for event in reader.feed(data)) == 4 + 3
    reader.close()
    with pytest.raises(InvalidBundle, match=f"would have {5 * headers + 3} members, and at most {4 * headers + 3} are read"):
        bundle(5, algorithm).finish()


def test_images(limit):
    limit("MAX_IMAGES", 4, "documents")
    made = bundle(4)
    made.finish()
    assert len(read_images(dict(made.documents))) == 4
    with pytest.raises(InvalidBundle, match="would have 5 images, signatures included, and at most 4 are read"):
        bundle(5).finish()


def test_documents(limit):
    made = bundle(4)
    made.finish()
    limit("MAX_DOCUMENT_BYTES", max(len(data) for _, data in made.documents), "receiver")
    bundle(4).finish()
    with pytest.raises(InvalidBundle, match=r"bytes in index\.json, and at most \d+ are read: export fewer images"):
        bundle(5).finish()
