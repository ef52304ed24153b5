"""The directory of a store: created, recognised, or refused with a reason."""

import os
import stat

import pytest

from mirror.core.digest import Digest
from mirror.errors import ConfigurationError
from mirror.storage.layout import LAYOUT, Layout


@pytest.fixture
def store(tmp_path):
    return Layout(str(tmp_path / "store"))


def test_prepare_makes_a_private_store(store):
    """A new store has all its directories, none of which others may look into."""
    store.prepare()
    for name in ("blobs/sha256", "blobs/sha512", "partial/sha256", "partial/sha512", "tmp", "index"):
        assert stat.S_IMODE(os.stat(f"{store.root}/{name}").st_mode) == 0o700
    with open(f"{store.root}/LAYOUT") as file:
        assert file.read() == LAYOUT


def test_prepare_again_changes_nothing(store):
    """A store can be opened again and again, with what it holds."""
    store.prepare()
    blob = store.blob(Digest.of(b"x"))
    os.makedirs(os.path.dirname(blob))
    with open(blob, "wb") as file:
        file.write(b"x")
    store.prepare()
    assert os.path.exists(blob)
    assert os.listdir(store.temporary) == []


def test_other_layout_is_refused(store):
    """A store of another version is not touched; the message names the key, the directory and both layouts."""
    store.prepare()
    with open(f"{store.root}/LAYOUT", "w") as file:
        file.write("registry-mirror store, layout 7\n")
    with pytest.raises(ConfigurationError) as caught:
        store.prepare()
    (problem,) = caught.value.problems
    assert problem.startswith("storage.path:")
    for part in (store.root, "layout 7", LAYOUT.strip()):
        assert part in problem


def test_garbage_layout_is_refused(store):
    """A marker that is no text is another layout, not a crash."""
    store.prepare()
    with open(f"{store.root}/LAYOUT", "wb") as file:
        file.write(b"\xff\xfe\x00garbage")
    with pytest.raises(ConfigurationError, match=r"storage\.path"):
        store.prepare()


def test_marker_that_a_crash_left_empty(store):
    """A process that died, or met a full disk, between creating and writing the marker leaves a store that opens."""
    store.prepare()
    os.truncate(f"{store.root}/LAYOUT", 0)
    store.prepare()
    with open(f"{store.root}/LAYOUT") as file:
        assert file.read() == LAYOUT


def test_file_in_the_way(tmp_path):
    """A path that is a file is refused by its key."""
    (tmp_path / "store").write_text("not a directory")
    with pytest.raises(ConfigurationError, match=r"storage\.path.*cannot be used"):
        Layout(str(tmp_path / "store")).prepare()


def test_unwritable_store_is_refused(small_disk):
    """A store on a read-only file system is refused by its key, before the mirror serves."""
    store = Layout(str(small_disk.path / "store"))
    store.prepare()
    small_disk.read_only()
    with pytest.raises(ConfigurationError, match=r"storage\.path.*Read-only"):
        store.prepare()


def test_only_the_digest_makes_a_path(store):
    """Blob, partial and map of a digest lie inside the store, all under its hex."""
    digest = Digest.of(b"x", "sha512")
    for path in (store.blob(digest), store.partial(digest), store.chunk_map(digest)):
        assert path.startswith(store.root + "/")
        assert digest.encoded in os.path.basename(path)
