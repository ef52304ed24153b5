"""The fake Docker Hub as a process of its own: synthetic layers of any size, made faster than a real registry can be filled."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.e2e.harness.client import request
from tests.e2e.harness.process import Program
from tests.support.waiting import wait_until


class Hub:
    """Started by its constructor; `url` is its registry's."""

    def __init__(self, directory: Path) -> None:
        """Start it without any image."""
        directory.mkdir(parents=True)
        self._output = directory / "hub.log"
        root = Path(__file__).parents[3]
        argv = [sys.executable, "-m", "tests.fakehub", "--auth", "none", "--no-redirect"]
        self._program = Program(argv, self._output, {"PYTHONPATH": str(root)})
        wait_until(lambda: "\n" in self._output.read_text(), "the fake hub", 20)
        where = json.loads(self._output.read_text().splitlines()[0])
        self.url, self._control = where["url"], where["control"]

    def close(self) -> None:
        """End it."""
        self._program.stop()

    def add_image(self, repository: str, tag: str, layers: Sequence[Mapping[str, int]]) -> dict[str, Any]:
        """An image with layers of so many bytes, `size`, that are the same for the same `seed`; its digests."""
        answer = self._post("images", {"repository": repository, "tag": tag, "layers": list(layers)})
        return json.loads(answer)

    @contextmanager
    def down(self) -> Iterator[None]:
        """Within the block connections are refused."""
        self._post("stop", {})
        try:
            yield
        finally:
            self._post("start", {})

    def _post(self, what: str, body: object) -> bytes:
        headers = {"Content-Type": "application/json"}
        answer = request("POST", f"{self._control}/{what}", json.dumps(body).encode(), headers)
        assert answer.status == 200, answer
        return answer.body
