"""The survey of held blobs: complete, in the order in which they should go, bounded, and given up when nobody wants it."""

import os
import time

import pytest

from mirror.core.digest import Digest
from mirror.maintenance import store_scan


def hold(files, data, used):
    digest = Digest.of(data)
    files.put(digest, data)
    files.touch(digest, used)
    return digest


@pytest.fixture
def held(files):
    """Ten blobs, the first used least recently."""
    return [hold(files, b"blob %d" % number, 1000.0 + number) for number in range(10)]


def names(found):
    return [file.digest for file in found.candidates()]


def test_it_counts_everything_and_names_the_oldest(layout, held):
    """All blobs are counted in whole blocks, and only so many are named, least recently used first."""
    found = store_scan.take(layout, lambda: False, 4)
    assert (found.blobs, found.taken) == (10, 10 * 4096)
    assert names(found) == held[:4]
    assert [(file.used, file.size) for file in found.candidates()] == [(1000.0 + number, 6) for number in range(4)]


def test_it_counts_without_names(layout, held):
    """Where no blob is to be named all are counted all the same, pinned ones apart."""
    found = store_scan.take(layout, lambda: False, pinned=frozenset(held[:3]))
    assert (found.blobs, found.taken, found.pinned, names(found)) == (10, 10 * 4096, 3 * 4096, [])


def test_smaller_ones_come_first_among_equals(layout, files):
    """Of blobs that were used at the same time a small one, such as a manifest, goes before a large one."""
    large, small = hold(files, b"x" * 9000, 1000.0), hold(files, b"y", 1000.0)
    assert names(store_scan.take(layout, lambda: False, 2)) == [small, large]


def test_pinned_ones_are_left_out_or_alone(layout, held):
    """What is pinned is counted but not named, or nothing else is named."""
    pinned = frozenset(held[:3])
    found = store_scan.take(layout, lambda: False, 4, pinned)
    assert found.blobs == 10
    assert names(found) == held[3:7]
    assert names(store_scan.take(layout, lambda: False, 9, pinned, only_pinned=True)) == held[:3]


def test_both_algorithms_and_nothing_else(layout, files):
    """Blobs of either algorithm are there; files that are no blobs are not."""
    digest = Digest.of(b"long", "sha512")
    files.put(digest, b"long")
    files.touch(digest, 5.25)
    for name in ("README", "A" * 64, "0" * 63):
        os.makedirs(f"{layout.blobs}/sha256/00", exist_ok=True)
        with open(f"{layout.blobs}/sha256/00/{name}", "w") as file:
            file.write("no blob")
    found = store_scan.take(layout, lambda: False, 9)
    assert [(file.digest, file.used) for file in found.candidates()] == [(digest, 5.25)]
    assert found.blobs == 1


def test_far_more_than_are_wanted(layout, files):
    """What was thrown away to stay within bounds was not among the oldest."""
    order = [(number * 7) % 50 for number in range(50)]
    made = {number: hold(files, b"many %d" % number, 1000.0 + number) for number in order}
    assert names(store_scan.take(layout, lambda: False, 3)) == [made[0], made[1], made[2]]


def test_nobody_waits_for_what_is_over(layout, held):
    """A survey whose time has come is no answer."""
    assert store_scan.take(layout, lambda: True, 4) is None


def test_a_survey_that_hangs_is_ended(layout, held, monkeypatch, tmp_path):
    """When time is up the process is ended and waited for, whatever it is doing."""
    program = tmp_path / "hangs.py"
    program.write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr(store_scan.scan_process, "__file__", str(program))
    looks = iter([False, False, True])
    began = time.monotonic()
    assert store_scan.take(layout, lambda: next(looks)) is None
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("text", ["raise SystemExit('broken')", "print('short')"])
def test_a_survey_that_fails_is_no_answer(layout, monkeypatch, tmp_path, text):
    """A process that fails, or says too little, is not believed."""
    program = tmp_path / "fails.py"
    program.write_text(text + "\n")
    monkeypatch.setattr(store_scan.scan_process, "__file__", str(program))
    assert store_scan.take(layout, lambda: False) is None


def test_an_interpreter_that_cannot_start_is_no_answer(layout, monkeypatch):
    """Where no process can be started nothing is known, and nothing breaks."""
    monkeypatch.setattr(store_scan.sys, "executable", "/nonexistent/python")
    assert store_scan.take(layout, lambda: False) is None


def test_slow_survey_with_pins(files, layout, monkeypatch):
    """A survey that takes longer than one look at the clock is waited for, pins and all."""
    # Short, but long enough for something to be read between two looks on a busy machine.
    monkeypatch.setattr(store_scan, "_POLL_INTERVAL_S", 0.005)
    files.put(Digest.of(b"pinned"), b"pinned")
    files.put(Digest.of(b"other"), b"other")
    taken = store_scan.take(layout, lambda: False, 10, frozenset({Digest.of(b"pinned")}))
    assert taken is not None
    assert [file.digest for file in taken.candidates()] == [Digest.of(b"other")]
