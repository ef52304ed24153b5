"""The load generators, each a process of its own (bench.load for downloads, wrk), and single requests."""

import http.client
import json
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from bench.load import Load, Outcome
from bench.process import NotTakenError

START_SECONDS = 15.0
REQUEST_SECONDS = 60.0
READ_BYTES = 1 << 20
LOCAL = "127.0.0.1"
# Of what wrk prints.
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def download(load: Load) -> Outcome:
    """Run a load in its own process. Raises NotTakenError if any download did not come whole."""
    text = _run(
        [sys.executable, "-m", "bench.load"],
        (load.seconds or load.limit) + START_SECONDS,
        json.dumps(asdict(load)),
    )
    outcome = Outcome(**json.loads(text))
    if outcome.error:
        raise NotTakenError(outcome.error)
    return outcome


def first_bytes(port: int, paths: Sequence[str]) -> list[float]:
    """Seconds from each request to the first byte of its body, one after another over one connection.

    Raises:
        NotTakenError: a request was not answered with 200.
    """
    connection = http.client.HTTPConnection(LOCAL, port, timeout=REQUEST_SECONDS)
    seconds = []
    try:
        for path in paths:
            began = time.monotonic()
            connection.request("GET", path)
            response = connection.getresponse()
            response.read(1)
            seconds.append(time.monotonic() - began)
            if response.status != 200:
                raise NotTakenError(f"GET {path} answered {response.status}")
            response.read()
    except (OSError, http.client.HTTPException) as error:
        raise NotTakenError(f"a blob did not come whole: {error}") from error
    finally:
        connection.close()
    return seconds


def requests_per_second(port: int, path: str, seconds: float, connections: int, headers: Mapping[str, str]) -> float:
    """wrk on kept-alive connections from one thread. Raises NotTakenError if an answer was not a success."""
    argv = ["wrk", "-t1", f"-c{connections}", f"-d{max(round(seconds), 1)}s"]
    for name, value in headers.items():
        argv += ["-H", f"{name}: {value}"]
    text = _run([*argv, f"http://{LOCAL}:{port}{path}"], seconds + START_SECONDS)
    trouble = re.search(r"(Non-2xx.*|Socket errors.*)", text)
    rate = re.search(r"Requests/sec:\s*([\d.]+)", text)
    if trouble or not rate:
        raise NotTakenError(trouble[1] if trouble else f"wrk said: {text.strip()[-200:]}")
    return float(rate[1])


def read_over_tls(port: int, path: str, seconds: float, connections: int) -> tuple[int, float]:
    """Bytes that wrk has read over TLS on kept-alive connections, and the seconds that it took."""
    argv = ["wrk", "-t1", f"-c{connections}", f"-d{max(round(seconds), 1)}s", "--timeout", "60s", f"https://{LOCAL}:{port}{path}"]
    text = _run(argv, seconds + START_SECONDS)
    found = re.search(r"requests in ([\d.]+)(m?s), ([\d.]+)([KMG]?)B read", text)
    if not found or "Non-2xx" in text:
        raise NotTakenError(f"wrk said: {text.strip()[-200:]}")
    return int(float(found[3]) * UNITS[found[4]]), float(found[1]) / (1000 if found[2] == "ms" else 1)


def get(
    port: int, path: str, headers: Mapping[str, str] | None = None, host: str = LOCAL, method: str = "GET"
) -> tuple[int, bytes]:
    """Status and the beginning of the body of one request, usually a GET, read to its end. Raises OSError or HTTPException."""
    connection = http.client.HTTPConnection(host, port, timeout=REQUEST_SECONDS)
    try:
        connection.request(method, path, headers=dict(headers or {}))
        answer = connection.getresponse()
        beginning = answer.read(READ_BYTES)
        while answer.read(READ_BYTES):
            pass
    finally:
        connection.close()
    return answer.status, beginning


def _run(argv: list[str], limit: float, text: str | None = None) -> str:
    try:
        done = subprocess.run(argv, input=text, capture_output=True, text=True, timeout=limit, check=True)
    except FileNotFoundError as error:
        raise NotTakenError(f"{argv[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise NotTakenError(f"{argv[0]} did not end within {limit:.0f} s") from error
    except subprocess.CalledProcessError as error:
        raise NotTakenError(f"{' '.join(argv[:3])} failed: {error.stderr.strip()[-200:]}") from error
    return done.stdout
