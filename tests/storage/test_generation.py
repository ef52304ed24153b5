"""The number by which every process learns that its memory is out of date."""

import os
import subprocess
import sys

import pytest

from mirror.storage.generation import Generation
from tests.support.waiting import LIMIT


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "generation")


@pytest.fixture
def generation(path):
    one = Generation(path)
    yield one
    one.close()


def test_stays_until_changed(generation):
    """It is the same at each look, and another one after a change."""
    before = generation.current()
    assert len(before) == 8
    assert generation.current() == before
    generation.change()
    assert len(generation.current()) == 8
    assert generation.current() != before


def test_second_holder_sees_the_change(generation, path):
    """Whoever opens the file later shares the number, and both see each other's changes."""
    other = Generation(path)
    assert other.current() == generation.current()
    other.change()
    assert generation.current() == other.current()
    other.close()


def test_other_process_sees_the_change(generation, path):
    """A change by another process is seen at the next look."""
    before = generation.current()
    code = "import sys; from mirror.storage.generation import Generation; Generation(sys.argv[1]).change()"
    subprocess.run([sys.executable, "-c", code, path], check=True, timeout=LIMIT)
    assert generation.current() != before


def test_damaged_file_gets_a_new_number(path):
    """A file that was cut short, as by a full disk, is no number; opening it makes one."""
    with open(path, "wb") as file:
        file.write(b"abc")
    generation = Generation(path)
    assert len(generation.current()) == 8
    generation.close()


def test_close_gives_the_descriptor_back(path):
    """No descriptor stays."""
    before = os.listdir("/proc/self/fd")
    Generation(path).close()
    assert os.listdir("/proc/self/fd") == before
