"""The file of counts: bounded, and readable whatever happened to it."""

import os

import pytest

from mirror.core.traffic import KEPT_MINUTES, Totals, Traffic
from mirror.storage.traffic_file import TrafficFile

NOW = 30_000_000


@pytest.fixture
def path(tmp_path):
    return tmp_path / "traffic"


def totals(minute, pulls=1):
    return Totals(minute, 123, Traffic(pulls, 2, 3, 2**63))


def test_rows_come_back(path):
    """By whomever they were written; the last one of a minute counts."""
    assert TrafficFile(str(path)).read() == []
    TrafficFile(str(path)).write(totals(NOW))
    TrafficFile(str(path)).write(totals(NOW, 5))
    TrafficFile(str(path)).write(totals(NOW + 1))
    assert sorted(TrafficFile(str(path)).read(), key=lambda row: row.minute) == [totals(NOW, 5), totals(NOW + 1)]
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_file_is_bounded(path):
    """A minute replaces the one of a week ago; a count that is too large is cut, not refused."""
    file = TrafficFile(str(path))
    for minute in (NOW, NOW + KEPT_MINUTES - 1, NOW + KEPT_MINUTES, NOW + 7 * KEPT_MINUTES):
        file.write(totals(minute))
    assert {row.minute for row in file.read()} == {NOW + 7 * KEPT_MINUTES, NOW + KEPT_MINUTES - 1}
    assert path.stat().st_size <= 1 << 19
    file.write(totals(NOW, 2**70))
    assert max(row.traffic.pulls for row in file.read()) == 2**64 - 1


@pytest.mark.parametrize(
    "damage", [b"", b"x" * 51, bytes(range(256)) * 400, bytes(100_000)], ids=["empty", "torn", "noise", "holes"]
)
def test_damage_is_no_row(path, damage):
    """A file that is torn, or something else, has no rows; the next write mends its place."""
    path.write_bytes(damage)
    file = TrafficFile(str(path))
    assert file.read() == []
    file.write(totals(NOW))
    assert file.read() == [totals(NOW)]


def test_links_and_pipes_are_not_followed(path, tmp_path):
    """Only a regular file of the store is read and written."""
    (tmp_path / "other").write_bytes(b"secret")
    path.symlink_to(tmp_path / "other")
    file = TrafficFile(str(path))
    assert file.read() == []
    with pytest.raises(OSError, match="symbolic"):
        file.write(totals(NOW))
    assert (tmp_path / "other").read_bytes() == b"secret"
    path.unlink()
    os.mkfifo(path)
    assert file.read() == []
    with pytest.raises(OSError, match="No such device"):
        file.write(totals(NOW))
