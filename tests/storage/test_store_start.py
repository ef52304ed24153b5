"""A store that cannot be opened, for want of room: a mistake with its key, never a traceback."""

import contextlib
import resource

import pytest

from mirror.config.sections import Storage
from mirror.errors import ConfigurationError
from mirror.storage.store import Store


@contextlib.contextmanager
def files_no_larger_than(size):
    """Every write beyond that fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [0, 8, 40, 4096, 20_000])
def test_no_room_at_the_start(tmp_path, size):
    """The store opens, or the start ends with one line that names the key and the directory."""
    with files_no_larger_than(size):
        try:
            Store(Storage(path=tmp_path / "store")).close()
        except ConfigurationError as error:
            (line,) = error.problems
            assert line.startswith(f"storage.path: the store '{tmp_path}/store' ")
