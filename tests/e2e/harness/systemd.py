"""A real systemd as the first process of namespaces of its own, with the shipped unit installed in them.

Nothing of the host is changed: /etc is a copy, and /opt, /run, /tmp and /var/cache are other directories. The network is the
host's, so that the tests reach the mirror and the mirror its upstream on loopback. Root is needed, as it is for dockerd.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from tests.e2e.harness.process import HarnessError, Program, find_command
from tests.support.waiting import wait_until

REPOSITORY = Path(__file__).parents[3]
UNIT = REPOSITORY / "systemd" / "registry-mirror.service"
SOCKET = REPOSITORY / "systemd" / "registry-mirror.socket"
BINARY = "/opt/registry-mirror/bin/registry-mirror"
_NAME = "registry-mirror"
_START_SECONDS = 30
_COMMAND_SECONDS = 90
_UNITS = "/etc/systemd/under-test"
_TARGETS = ("sysinit", "basic", "multi-user", "network-online", "shutdown", "default")
_USER = "registry-mirror:x:64999:64999::/var/cache/registry-mirror:/usr/sbin/nologin\n"
_GROUP = "registry-mirror:x:64999:\n"
# The binaries of a Python that is not the distribution's look for their library where it was installed, below a home perhaps.
_LAUNCHER = """\
#!/bin/sh
export LD_LIBRARY_PATH=/opt/python/lib PYTHONPATH=/opt/registry-mirror/lib:/opt/registry-mirror/site
exec /opt/python/bin/{python} -m mirror "$@"
"""
_BOOT = """\
set -eu
mount --make-rprivate /
mount -t cgroup2 none /sys/fs/cgroup
mount -t proc proc /proc
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /opt
mkdir -p /opt/python /opt/registry-mirror/bin /opt/registry-mirror/lib/mirror /opt/registry-mirror/site
mount --bind {base} /opt/python
mount --bind {site} /opt/registry-mirror/site
mount --bind {package} /opt/registry-mirror/lib/mirror
cp {directory}/launcher /opt/registry-mirror/bin/registry-mirror
mount --bind {directory}/etc /etc
mount --bind {directory}/cache /var/cache
mount --bind {directory}/log /var/log
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /var/tmp
export container=test SYSTEMD_UNIT_PATH={units}
exec {systemd} --system --unit=default.target --log-target=console --show-status=no
"""


class Systemd:
    """Started by its constructor; the unit is installed but not started."""

    def __init__(self, directory: Path, configuration: str) -> None:
        """Boot it with `configuration` as the mirror's /etc/registry-mirror/mirror.yaml."""
        self._directory = directory
        self._etc = directory / "etc"
        self.store = directory / "cache" / "registry-mirror" / "cache"
        for name in ("cache", "log"):
            (directory / name).mkdir(parents=True)
        subprocess.run([find_command("cp"), "--archive", "/etc", self._etc], check=True, timeout=_COMMAND_SECONDS)
        for name, line in (("passwd", _USER), ("group", _GROUP)):
            with (self._etc / name).open("a") as file:
                file.write(line)
        (self._etc / _NAME).mkdir()
        self.configure(configuration)
        self._install_units()
        self._cgroup = _cgroup_root() / f"registry-mirror-test-{os.getpid()}-{directory.name}"
        self._boot()

    def configure(self, text: str) -> None:
        """Replace the mirror's configuration."""
        (self._etc / _NAME / "mirror.yaml").write_text(text)

    def install(self, name: str, text: str) -> None:
        """Add a unit, or a part of one (`NAME.service.d/x.conf`), to the running system."""
        path = Path(f"{self._directory}{_UNITS}", name)
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        self.succeed("daemon-reload")

    def control(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`systemctl` in there; a command that waits ends when what it waits for has, at most after a minute and a half."""
        argv = [find_command("nsenter"), "--target", str(self._first), "--mount", "--pid", "--"]
        argv += [find_command("systemctl"), "--no-pager", *arguments]
        return subprocess.run(argv, capture_output=True, text=True, timeout=_COMMAND_SECONDS, check=False)

    def succeed(self, *arguments: str) -> str:
        """Standard output of a `systemctl` that has to succeed; HarnessError with the mirror's log if not."""
        done = self.control(*arguments)
        if done.returncode:
            raise HarnessError(f"systemctl {' '.join(arguments)}: {done.stderr}\n{self.log()}\n{self._program.tail()}")
        return done.stdout

    def show(self, unit: str, name: str) -> str:
        """One property of a unit."""
        return self.succeed("show", "--value", "--property", name, unit).strip()

    def log(self, unit: str = _NAME) -> str:
        """What a unit's processes have written so far."""
        path = self._directory / "log" / f"{unit}.log"
        return path.read_text() if path.exists() else ""

    def close(self) -> None:
        """End everything that runs in there."""
        # Its child, the first process of the namespace, dies with it, and everything else with that.
        self._program.kill()
        wait_until(lambda: _is_removed(self._cgroup), "the end of all processes in the namespace", 10)

    def _install_units(self) -> None:
        units = Path(f"{self._directory}{_UNITS}")
        units.mkdir(parents=True)
        for name in _TARGETS:
            (units / f"{name}.target").write_text("[Unit]\nDefaultDependencies=no\n")
        shutil.copy(UNIT, units)
        # The same sandbox for a command that an operator runs beside the service.
        text = UNIT.read_text()
        lines = [line for line in text.splitlines() if not line.startswith(("ExecReload=", "Restart"))]
        verify = "\n".join(lines).replace("Type=notify", "Type=oneshot")
        verify = verify.replace(f"{BINARY} serve", f"{BINARY} verify --json")
        (units / f"{_NAME}-verify.service").write_text(verify)
        for name in (_NAME, f"{_NAME}-verify"):
            extra = units / f"{name}.service.d"
            extra.mkdir()
            # There is no journal here.
            log = f"append:/var/log/{name}.log"
            (extra / "log.conf").write_text(f"[Service]\nStandardOutput={log}\nStandardError={log}\n")

    def _boot(self) -> None:
        launcher = self._directory / "launcher"
        launcher.write_text(_LAUNCHER.format(python=Path(sys.executable).resolve().name))
        launcher.chmod(0o755)
        boot = self._directory / "boot.sh"
        boot.write_text(
            _BOOT.format(
                base=sys.base_prefix,
                site=sysconfig.get_path("purelib"),
                package=REPOSITORY / "mirror",
                directory=self._directory,
                units=_UNITS,
                systemd=_find_systemd(),
            )
        )
        self._cgroup.mkdir()
        enter = "exec unshare --fork --kill-child --pid --mount --uts --ipc --cgroup"
        join = f"echo $$ >{self._cgroup}/cgroup.procs && {enter} sh {boot}"
        self._program = Program(["sh", "-c", join], self._directory / "systemd.log")
        self._program.wait_ready(self._is_up, "systemd is up", _START_SECONDS)

    def _is_up(self) -> bool:
        children = Path(f"/proc/{self._program.pid}/task/{self._program.pid}/children").read_text().split()
        if not children:
            return False
        self._first = int(children[0])
        return self.control("is-active", "default.target").stdout.strip() == "active"


def _cgroup_root() -> Path:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[fields.index("-") + 1] == "cgroup2":
            return Path(fields[4])
    raise HarnessError("no cgroup2 is mounted, and systemd needs one")


def _is_removed(cgroup: Path) -> bool:
    """Remove a group with those below it; False while there is a process in one of them."""
    try:
        for path in (*sorted((path for path in cgroup.rglob("*") if path.is_dir()), reverse=True), cgroup):
            path.rmdir()
    except OSError:
        return False
    return True


def _find_systemd() -> str:
    found = next((path for path in ("/lib/systemd/systemd", "/usr/lib/systemd/systemd") if Path(path).exists()), None)
    if found is None:
        raise HarnessError("systemd is not installed: run tests/e2e/install.sh as root")
    return found
