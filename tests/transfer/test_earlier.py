"""The blobs of an earlier bundle."""

import gzip
import io
import tarfile

import pytest

from mirror.core.digest import Digest
from mirror.transfer.earlier import earlier_blobs

DIGEST = Digest.of(b"layer")
BLOB = f"blobs/sha256/{DIGEST.encoded}"


def tar_of(*names):
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 2
            tar.addfile(member, io.BytesIO(b"[]"))
    return made.getvalue()


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
@pytest.mark.parametrize("prefix", ["", "./"])
def test_blobs_are_found(tmp_path, compress, prefix):
    """Plain or compressed, whoever has written it."""
    (tmp_path / "old.tar").write_bytes(compress(tar_of(prefix + BLOB, prefix + "index.json", "abc/layer.tar")))
    assert earlier_blobs(str(tmp_path / "old.tar")) == {DIGEST}


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"no tar", "it is no tar, or was cut"),
        (b"", "it is no tar, or was cut"),
        (tar_of(BLOB, "index.json")[:600], "it is no tar, or was cut"),
        (gzip.compress(tar_of(BLOB, "index.json"))[:60], "it is no tar, or was cut"),
        (tar_of(BLOB), "it has neither index.json nor manifest.json: it is no bundle, or was cut"),
        (tar_of("manifest.json", "abc/layer.tar"), "none of its members has a digest as its name"),
    ],
    # Not by content: gzip writes the time into it, and all processes of a run need the same names.
    ids=["text", "nothing", "cut", "cut gzip", "no index", "no digest"],
)
def test_what_is_no_whole_bundle(tmp_path, raw, said):
    """The message says why, in one line."""
    (tmp_path / "old.tar").write_bytes(raw)
    with pytest.raises(ValueError, match=said) as caught:
        earlier_blobs(str(tmp_path / "old.tar"))
    assert len(str(caught.value).splitlines()) == 1


def test_too_many_members(tmp_path, monkeypatch):
    """The memory for a tar that is no bundle is bounded."""
    monkeypatch.setattr("mirror.transfer.earlier._MAX_MEMBERS", 2)
    (tmp_path / "old.tar").write_bytes(tar_of("a", "b", "c"))
    with pytest.raises(ValueError, match="it has more than 2 members"):
        earlier_blobs(str(tmp_path / "old.tar"))
