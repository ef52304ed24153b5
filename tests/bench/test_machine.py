"""The state of the machine before each turn of a benchmark."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MEMORY = 64 << 20
PEAK = """
import sys
from bench.machine import level
level(int(sys.argv[1]))
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def peak(memory):
    done = subprocess.run([sys.executable, "-c", PEAK, str(memory)], cwd=ROOT, capture_output=True, timeout=60, check=True)
    return int(done.stdout) << 10


def test_memory_is_used_once():
    """Every page of it is written, so that a host has given it."""
    assert peak(MEMORY) - peak(1 << 20) > 0.9 * MEMORY
