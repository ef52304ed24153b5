"""Bundles that a mirror under test is asked for."""

from tests.support.bundles import BundleRead
from tests.support.names import APP
from tests.support.waiting import eventually

NAME = f"docker.io/{APP}"
AMD64, ARM64, S390X = "linux/amd64", "linux/arm64", "linux/s390x"


class Exports:
    """Asks a mirror for bundles."""

    def __init__(self, mirror):
        self._mirror = mirror
        self.url = f"http://127.0.0.1:{mirror.admin_port}/api/v1/export"

    def begin(self, *images, headers=None, **body):
        return self._mirror.session.post(self.url, json={"images": list(images), **body}, headers=headers)

    async def raw(self, *images, **body):
        """The bytes of a bundle."""
        async with self.begin(*images, **body) as answer:
            assert answer.status == 200, await answer.text()
            assert answer.headers["Content-Type"] == "application/x-tar"
            raw = await answer.read()
            assert len(raw) == int(answer.headers["Content-Length"])
            return raw

    async def bundle(self, *images, **body):
        return BundleRead(await self.raw(*images, **body))

    async def refusal(self, *images, **body):
        """The status and the text of an error."""
        async with self.begin(*images, **body) as answer:
            return answer.status, (await answer.json())["error"]

    async def ended(self, name):
        """The state of an export that has ended."""

        async def state():
            async with self._mirror.session.get(f"{self.url}/{name}") as answer:
                return await answer.json() if answer.status == 200 else {}

        return await eventually(state, "its end", holds=lambda row: row.get("phase") == "ended")
