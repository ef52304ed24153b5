"""A RADOS gateway of Ceph: an S3 service that checks signatures, conditions and the age of URLs. All of it is in memory."""

import os
import urllib.request
import uuid
from datetime import timedelta
from pathlib import Path

import obstore
from obstore.store import S3Store

from tests.e2e.harness.client import answers
from tests.e2e.harness.process import HarnessError, Program, listening, run, succeed
from tests.support.ports import free_port
from tests.support.waiting import wait_until

ACCESS_KEY, SECRET = "mirror-tests", "a-secret-of-the-tests"
# Where install.sh unpacks the packages, which need no installation.
ROOT = Path(os.environ.get("CEPH_ROOT", "/opt/registry-mirror-ceph"))
_PROGRAMS = ROOT / "usr/bin"
_LIBRARIES = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu/ceph", "usr/lib")
_START_S = 60
_MEMORY_BYTES = 1 << 30


class CephGateway:
    """A monitor, a store in memory, and a gateway before it."""

    def __init__(self, directory: Path) -> None:
        """Start them; takes some seconds."""
        directory.mkdir(parents=True)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._directory = directory
        self._monitor = free_port()
        self._cluster = str(uuid.uuid4())
        self._programs: list[Program] = []
        libraries = ":".join(str(ROOT / path) for path in _LIBRARIES)
        self._environment = {
            "LD_LIBRARY_PATH": libraries,
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT / "usr/lib/python3/dist-packages"),
            "HOME": str(directory),
        }
        if not (_PROGRAMS / "radosgw").exists():
            raise HarnessError(f"{ROOT} has no radosgw: run tests/e2e/install.sh full as root")
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def bucket(self, name: str) -> None:
        """Make a bucket."""
        store = S3Store(
            name,
            endpoint=self.url,
            access_key_id=ACCESS_KEY,
            secret_access_key=SECRET,
            region="us-east-1",
            client_options={"allow_http": True},
        )
        url = obstore.sign(store, "PUT", "", timedelta(seconds=60))
        urllib.request.urlopen(urllib.request.Request(url, b"", method="PUT"), timeout=30).close()

    def close(self) -> None:
        """End all of it."""
        for program in reversed(self._programs):
            program.kill()

    def _start(self) -> None:
        place = self._directory
        (place / "ceph.conf").write_text(self._configuration())
        for name in ("mon", "osd", "rgw"):
            (place / name).mkdir()
        monitors = str(place / "monmap")
        self._run("monmaptool", "--create", "--fsid", self._cluster, "--addv", "a", f"[v1:127.0.0.1:{self._monitor}]", monitors)
        self._run("ceph-mon", *self._options, "--mkfs", "-i", "a", "--monmap", monitors)
        self._serve("ceph-mon", "-i", "a", "-f", port=self._monitor)
        store = str(uuid.uuid4())
        # The monitor listens before it obeys.
        wait_until(lambda: self._succeeds("ceph", *self._options, "osd", "new", store), "the monitor obeys", _START_S)
        self._run("ceph-osd", *self._options, "-i", "0", "--mkfs", "--osd-uuid", store)
        self._serve("ceph-osd", "-i", "0", "-f")
        self._programs[-1].wait_ready(self._has_store, "the store is up", _START_S)
        keys = [f"--access-key={ACCESS_KEY}", f"--secret-key={SECRET}"]
        self._run("radosgw-admin", *self._options, "user", "create", "--uid=mirror", "--display-name=mirror", *keys)
        self._serve("radosgw", "-n", "client.rgw", f"--rgw-frontends=beast endpoint=127.0.0.1:{self.port}", "-f", port=self.port)
        if not answers(self.url):
            raise HarnessError(f"the gateway does not answer\n{self._programs[-1].tail()}")

    @property
    def _options(self) -> list[str]:
        return ["-c", str(self._directory / "ceph.conf")]

    def _run(self, *command: str) -> None:
        succeed([str(_PROGRAMS / command[0]), *command[1:]], self._environment, _START_S)

    def _succeeds(self, *command: str) -> bool:
        return run([str(_PROGRAMS / command[0]), *command[1:]], self._environment, _START_S).returncode == 0

    def _has_store(self) -> bool:
        found = run([str(_PROGRAMS / "ceph"), *self._options, "osd", "stat"], self._environment, _START_S)
        return b"1 up" in found.stdout

    def _serve(self, name: str, *options: str, port: int | None = None) -> None:
        program = Program([str(_PROGRAMS / name), *self._options, *options], self._directory / f"{name}.out", self._environment)
        self._programs.append(program)
        if port is not None:
            program.wait_ready(lambda: listening(port), "listening", _START_S)

    def _configuration(self) -> str:
        place, libraries = self._directory, ROOT / "usr/lib/x86_64-linux-gnu"
        modes = "".join(f"ms_{kind}_mode = crc\n" for kind in ("mon_client", "client", "cluster", "service"))
        rights = "".join(f"auth_{kind}_required = none\n" for kind in ("cluster", "service", "client"))
        return f"""[global]
fsid = {self._cluster}
mon_host = v1:127.0.0.1:{self._monitor}
ms_bind_msgr2 = false
{modes}{rights}osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 1
osd_pool_default_pgp_num = 1
osd_crush_chooseleaf_type = 0
crush_location = root=default host=localhost
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 1000
mon_cluster_log_file = {place}/cluster.log
osd_objectstore = memstore
memstore_device_bytes = {_MEMORY_BYTES}
run_dir = {place}
admin_socket = {place}/$name.asok
log_file = {place}/$name.log
pid_file = {place}/$name.pid
erasure_code_dir = {libraries}/ceph/erasure-code
osd_class_dir = {libraries}/rados-classes
plugin_dir = {libraries}/ceph
mon_data = {place}/mon
osd_data = {place}/osd
rgw_data = {place}/rgw
"""
