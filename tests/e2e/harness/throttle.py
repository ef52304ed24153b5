"""A slow line to the upstream: nginx in front of it, limited per request, with a count of the bytes sent."""

import re
from pathlib import Path

from tests.e2e.harness.process import Program, listening
from tests.support.ports import free_port

_CONFIGURATION = """\
daemon off;
master_process off;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{}}
http {{
    log_format sent '$request_method $uri $status $body_bytes_sent';
    access_log {directory}/access.log sent;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    server {{
        listen 127.0.0.1:{port};
        limit_rate {rate};
        location / {{
            proxy_pass {upstream};
            proxy_http_version 1.1;
            proxy_set_header Host $http_host;
            proxy_set_header Connection "";
            proxy_max_temp_file_size 0;
        }}
    }}
}}
"""
_SENT = re.compile(r"^GET (?P<path>\S+) 20[06] (?P<size>\d+)$", re.MULTILINE)


ONE_CONNECTION = {"downloads": {"connections_per_blob": 1}}
"""Sections of a configuration with which the limit of a response is that of a blob."""


class Throttle:
    """An nginx between the mirror and the upstream that sends each response body at a limited rate."""

    def __init__(self, directory: Path, upstream_url: str, bytes_per_second: int) -> None:
        """Start nginx on a loopback port."""
        directory.mkdir(parents=True)
        self._access_log = directory / "access.log"
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        configuration = directory / "nginx.conf"
        text = _CONFIGURATION.format(directory=directory, port=port, rate=bytes_per_second, upstream=upstream_url)
        configuration.write_text(text)
        argv = ["nginx", "-c", str(configuration), "-e", str(directory / "error.log")]
        self._program = Program(argv, directory / "nginx.log")
        self._program.wait_ready(lambda: listening(port), "listening", 20)

    def close(self) -> None:
        """End nginx."""
        self._program.stop()

    def bytes_sent(self, path: str) -> int:
        """The body bytes of all finished answers to GETs of this path."""
        text = self._access_log.read_text()
        return sum(int(found["size"]) for found in _SENT.finditer(text) if found["path"] == path)
