"""Runs the fake Docker Hub in a process of its own: `python -m tests.fakehub`."""

import argparse
import asyncio
import json
import re
import signal
import sys

from aiohttp import web

from .control import Control, add_image
from .hub import FakeHub

UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30}
EPILOG = """
When it is ready, one line of JSON on stdout says where everything is. SIGTERM and SIGINT end it.
The control address: GET / /requests /count /script/ID; POST /reset /settings /advance /start /stop /images
/tags /script /script/ID/release /script/ID/advance; DELETE /script /script/ID. Bodies: see control.py.
"""


def size(text: str) -> int:
    """Bytes from `200MB`, `64KiB` or `1000`."""
    found = re.fullmatch(r"(\d+)\s*([kmg]?i?)b?", text.lower())
    if found is None or found[2] not in UNITS:
        raise argparse.ArgumentTypeError(f"not a size: {text}")
    return int(found[1]) * UNITS[found[2]]


def image(text: str) -> dict[str, object]:
    """`library/nginx:latest=200MB,5MB`: layers of pseudo-random bytes; after `tar:` real layers."""
    found = re.fullmatch(r"(tar:)?([a-z0-9/._-]+):([\w.-]+)=([\w,]+)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"not an image: {text}")
    tar, repository, tag, sizes = found.groups()
    key = "tar_size" if tar else "size"
    layers = [{key: size(one), "seed": seed} for seed, one in enumerate(sizes.split(","))]
    return {"repository": repository, "tag": tag, "layers": layers}


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="tests.fakehub", description=__doc__, epilog=EPILOG)
    options.add_argument("--port", type=int, default=0, help="of the registry; 0 = a free one")
    options.add_argument("--control-port", type=int, default=0)
    options.add_argument("--auth", choices=["bearer", "none", "basic"], default="bearer")
    options.add_argument("--user", action="append", default=[], metavar="NAME:PASSWORD")
    options.add_argument("--image", type=image, action="append", default=[], help=image.__doc__)
    options.add_argument("--no-redirect", action="store_true", help="serve blobs without the CDN")
    options.add_argument("--bandwidth", type=size, help="bytes a second for all blobs together")
    options.add_argument("--connection-bandwidth", type=size, help="bytes a second for each connection")
    options.add_argument("--latency", type=float, default=0.0, help="seconds before each answer")
    return options


async def run(options: argparse.Namespace) -> None:
    """Serve until a signal comes."""
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    async with FakeHub(options.port) as hub:
        hub.auth, hub.latency, hub.redirect_blobs = options.auth, options.latency, not options.no_redirect
        hub.bandwidth, hub.connection_bandwidth = options.bandwidth, options.connection_bandwidth
        hub.users = dict(user.split(":", 1) for user in options.user)
        runner = web.AppRunner(Control(hub).app(), access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", options.control_port)
        await site.start()
        where = {
            "url": hub.url,
            "control": f"http://127.0.0.1:{runner.addresses[0][1]}",
            "token_host": hub.token_host,
            "cdn_host": hub.cdn_host,
            "images": {f"{one['repository']}:{one['tag']}": add_image(hub, one) for one in options.image},
        }
        print(json.dumps(where), flush=True)
        await ended.wait()
        await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(run(parser().parse_args(sys.argv[1:])))
