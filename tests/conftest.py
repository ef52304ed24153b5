"""Fixtures for all tests: the fake Hub, and a whole mirror in this process that has it as its upstream."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.fakehub.plugin import hub
from tests.support.launcher import close_launcher
from tests.support.mirrors import MirrorUnderTest
from tests.support.ports import close_ports
from tests.support.unhurried import move_limits

__all__ = ["hub"]

# No test may fail because the machine is busy, nor because of the examples that it draws; `explore` draws others in each run.
settings.register_profile("repeatable", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.register_profile("explore", settings.get_profile("repeatable"), derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

MEMORY = Path("/dev/shm")
_ROOM = 4 << 30
# Each test makes some ten thousand objects, nearly none of them garbage in a circle.
_GC_THRESHOLDS = (10_000, 10, 10)


def pytest_configure():
    """Move the mirror's short time limits, and put directories into memory if there is room: new stores wait for no disk then."""
    if MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free >= _ROOM:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))
    move_limits()


def pytest_collection_finish():
    """Have the garbage collector leave alone what lives to the end: the tests themselves, and all modules."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)


def pytest_unconfigure():
    """End what was started once for all tests."""
    close_launcher()
    close_ports()


@pytest.fixture
def disk_path():
    """A directory like `tmp_path`, but never in memory; for what depends on the kernel's page cache."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        yield Path(name)


@pytest.fixture
async def mirror(hub, tmp_path):
    """A mirror of the fake Hub, on free ports, with an empty store."""
    async with MirrorUnderTest(hub, tmp_path / "store") as under_test:
        yield under_test
