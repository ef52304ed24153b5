"""The mirror as a process of its own, as an operator runs it."""

import asyncio
import json
import signal

import aiohttp
import yaml

from tests.support.launcher import start_mirror
from tests.support.ports import free_port
from tests.support.waiting import LIMIT


class Process:
    """`python -m mirror …`; whatever happens, it is gone when this is left.

    Attributes:
        log: what it has written to standard error, complete once it has ended.
        unhurried: whether its short time limits are moved far away.
        network: the network namespace that it runs in, if it is not that of the tests.
    """

    unhurried = True
    network = None

    def __init__(self, *arguments, directory, environment=None):
        self._arguments = arguments
        self._directory = directory
        self._environment = environment
        self.log = ""
        self._lines = asyncio.Event()

    async def __aenter__(self):
        self.process = await start_mirror(
            *self._arguments,
            directory=self._directory,
            environment=self._environment,
            silent=True,
            unhurried=self.unhurried,
            network=self.network,
        )
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_):
        if self.process.returncode is None:
            self.process.kill()
        await self.ended()

    async def _read(self):
        async for line in self.process.stderr:
            self.log += line.decode()
            self._lines.set()

    async def ended(self):
        """The exit status."""
        async with asyncio.timeout(LIMIT):
            status = await self.process.wait()
            await self._reading
        return status

    async def logged(self, text, times=1):
        """Wait until a text stands in the log so many times."""
        async with asyncio.timeout(LIMIT):
            while self.log.count(text) < times:
                self._lines.clear()
                waiting = asyncio.ensure_future(self._lines.wait())
                await asyncio.wait([waiting, self._reading], return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
                assert not self._reading.done() or self.log.count(text) >= times, self.log

    def signal(self, number=signal.SIGTERM):
        self.process.send_signal(number)


class Served(Process):
    """`serve` with a configuration of its own over a fake Hub.

    Attributes:
        host: the address that it listens on.
    """

    host = "127.0.0.1"

    def __init__(self, hub, directory, **settings):
        self.port, self.admin_port = free_port(), free_port()
        self.file = directory / "mirror.yaml"
        self.store = directory / "store"
        self.settings = {
            "listen": f"{self.host}:{self.port}",
            "admin": {"listen": f"{self.host}:{self.admin_port}"},
            "storage": {"path": str(self.store)},
            "registries": {"docker.io": {"upstreams": [hub.url], "token_hosts": [hub.token_host]}},
            "log": {"format": "json"},
            **settings,
        }
        self.write()
        super().__init__("serve", "--config", str(self.file), directory=directory)

    def write(self, **changes):
        """Change the configuration file."""
        self.settings.update(changes)
        self.file.write_text(yaml.safe_dump(self.settings))

    async def __aenter__(self):
        await super().__aenter__()
        self.session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=LIMIT))
        await self.logged('"serving"')
        return self

    async def __aexit__(self, *_):
        await self.session.close()
        await super().__aexit__()

    def url(self, path):
        return f"http://{self.host}:{self.port}{path}"

    async def get(self, path):
        """Status, X-Cache and body."""
        async with self.session.get(self.url(path)) as response:
            return response.status, response.headers.get("X-Cache"), await response.read()

    async def ready(self):
        """Status and body of /readyz."""
        async with self.session.get(f"http://{self.host}:{self.admin_port}/readyz") as response:
            return response.status, await response.json()

    def events(self):
        """The log, line by line."""
        return [json.loads(line) for line in self.log.splitlines()]
