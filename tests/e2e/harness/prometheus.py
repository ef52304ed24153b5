"""A real Prometheus with what is shipped for it."""

import json
import shutil
from pathlib import Path

import yaml
from aiohttp import ClientSession

from tests.e2e.harness.process import Program
from tests.support.ports import free_port

MONITORING = Path(__file__).parents[3] / "monitoring"


class Prometheus:
    """A Prometheus with the shipped rules that scrapes one mirror every two seconds."""

    def __init__(self, directory: Path, session: ClientSession, admin_port: int) -> None:
        self._session = session
        port = free_port()
        self._url = f"http://127.0.0.1:{port}/api/v1/"
        for file in MONITORING.glob("*.yaml"):
            shutil.copy(file, directory)
        config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
        config["global"] |= {"scrape_interval": "2s", "scrape_timeout": "2s", "evaluation_interval": "200ms"}
        config["scrape_configs"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{admin_port}"]}]
        (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
        arguments = [f"--web.listen-address=127.0.0.1:{port}", "--config.file=prometheus.yml", "--storage.tsdb.path=tsdb"]
        self.program = Program(["prometheus", *arguments], directory / "prometheus.log")

    async def api(self, path: str, **query: str) -> dict:
        """The data of an answer of the HTTP API; nothing while Prometheus starts."""
        try:
            async with self._session.get(self._url + path, params=query, headers={"Accept-Encoding": "identity"}) as response:
                return json.loads(await response.text())["data"] if response.status == 200 else {}
        except OSError:
            return {}

    async def value(self, query: str) -> float | None:
        """The only value of an instant query; None without one."""
        found = (await self.api("query", query=query)).get("result", [])
        return float(found[0]["value"][1]) if found else None

    async def health(self) -> set[str]:
        """What has become of the rules."""
        groups = (await self.api("rules"))["groups"]
        return {rule["health"] for group in groups for rule in group["rules"]}
