"""A listener in the place of an upstream that must not be asked."""

import asyncio


class Trap:
    """Listens where an upstream would, and counts who connects."""

    def __init__(self):
        self.connections = 0

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_):
        self._server.close()
        await self._server.wait_closed()

    @property
    def url(self):
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def _accept(self, _, writer):
        self.connections += 1
        writer.close()
