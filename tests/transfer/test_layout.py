"""The names inside a bundle."""

import pytest

from mirror.core.digest import Digest
from mirror.transfer.layout import blob_digest, blob_path


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
