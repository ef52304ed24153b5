"""What operators read of a mirror under mixed load agrees: metrics, status, access log, clients, and upstream's own counts."""

import asyncio
import json
import os
import re
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families

from mirror.core.units import format_bytes
from tests.e2e.harness.mixed_load import APP, NODES, MixedLoad
from tests.fakehub import FakeHub, Seen
from tests.mirror.commands import command
from tests.support.waiting import LIMIT

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]
COUNTED = {"manifest", "blob", "tags", "referrers"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def load(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[MixedLoad]:
    """A mirror of two workers after all of the load, at rest."""
    async with FakeHub() as hub, FakeHub() as second:
        load = MixedLoad(hub, second, tmp_path_factory.mktemp("numbers"))
        async with load.cluster:
            await load.run()
            await load.settle()
            yield load


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def counted(load: MixedLoad) -> "Counted":
    return Counted((await load.cluster.admin("/metrics")).decode())


class Counted:
    """A scrape."""

    def __init__(self, text: str) -> None:
        families = text_string_to_metric_families(text)
        self._samples = [sample for family in families for sample in family.samples]

    def by(self, name: str, *labels: str, **wanted: str) -> Counter[tuple[str, ...]]:
        """The sums of a family without those that are 0, by these labels."""
        found: Counter[tuple[str, ...]] = Counter()
        for sample in self._samples:
            if sample.name == f"registry_mirror_{name}" and wanted.items() <= sample.labels.items():
                found[tuple(sample.labels[label] for label in labels)] += int(sample.value)
        return Counter({key: count for key, count in found.items() if count})


def answers(hub: FakeHub) -> list[Seen]:
    """The answers that ended a request of the mirror: no challenges, redirects, tokens and probes."""
    found = [seen for seen in hub.requests if seen.host != "token" and seen.kind != "ping" and seen.status not in (0, 307)]
    sent = Counter(map(_name, hub.requests))
    # A request with a 401 is sent again with another token, unless that is what another token cannot change.
    before: Counter[tuple[str | None, ...]] = Counter()
    ended = []
    for seen in found:
        before[_name(seen)] += 1
        if seen.status != 401 or before[_name(seen)] == sent[_name(seen)]:
            ended.append(seen)
    return ended


def _name(seen: Seen) -> tuple[str | None, ...]:
    return seen.headers.get("X-Request-Id"), seen.method, seen.path


async def test_lines_say_what_clients_have_seen(load):
    """Each answer is one line with its status, outcome and bytes; a client that left is one line, too."""
    lines = {line["request"]: line for line in load.lines()}
    differing = []
    for seen in load.seen:
        line = lines.pop(seen.request)
        # A body that ends short may be cut on the way, too.
        size = line["bytes"] if seen.is_whole else seen.size
        outcome = line.get("outcome", "").replace("ERROR", "")
        if (line["method"], line["status"], size, outcome) != (seen.method, seen.status, seen.size, seen.outcome):
            differing.append((seen, line))
    assert differing == []
    assert len(lines) == load.left


async def test_requests(load, counted):
    """The requests of each registry, kind, outcome and status are the lines of the access log."""
    lines = Counter((x["registry"], x["kind"], x["outcome"], str(x["status"])) for x in load.lines() if x.get("kind") in COUNTED)
    assert counted.by("requests_total", "registry", "kind", "outcome", "status") == lines
    timed = counted.by("request_duration_seconds_count", "kind", "outcome")
    assert timed == counted.by("requests_total", "kind", "outcome")


async def test_bytes_to_clients(load, counted):
    """The bytes of each registry and outcome are those of the access log."""
    sent: Counter[tuple[str, str]] = Counter()
    for line in load.lines():
        if line.get("kind") in COUNTED:
            sent[line["registry"], line["outcome"]] += line["bytes"]
    assert counted.by("served_bytes_total", "registry", "outcome") == +sent


async def test_stale_answers(load, counted):
    """Each STALE answer has a reason."""
    lines = Counter((line["registry"],) for line in load.lines() if line.get("outcome") == "STALE")
    assert counted.by("stale_served_total", "registry") == lines
    assert {reason for (reason,) in counted.by("stale_served_total", "reason")} == {"rate_limited", "server_error", "connect"}


async def test_requests_to_upstream(load, counted):
    """Each request that an upstream has answered is counted once, with the status that ended its redirects and challenges."""
    for registry, hub in (("docker.io", load.hub), ("second.example", load.second)):
        asked = Counter((seen.kind, str(seen.status)) for seen in answers(hub))
        found = counted.by("upstream_requests_total", "kind", "status", registry=registry)
        assert Counter({key: count for key, count in found.items() if key[0] != "check" and key[1].isdigit()}) == asked
    assert {status for (status,) in counted.by("upstream_requests_total", "status") if not status.isdigit()} == {"connect"}


async def test_bytes_from_upstream(load, counted):
    """The bytes of content are those that upstreams have sent."""
    sent = {
        (registry,): sum(seen.body_bytes_sent for seen in answers(hub) if seen.status in (200, 206))
        for registry, hub in (("docker.io", load.hub), ("second.example", load.second))
    }
    assert counted.by("upstream_bytes_total", "registry") == sent


async def test_pulls_left(load, counted):
    """What is left of the pull limit is what upstream has counted."""
    assert counted.by("upstream_ratelimit_remaining", "registry") == {
        ("docker.io",): load.hub.ratelimit_remaining,
        ("second.example",): load.second.ratelimit_remaining,
    }


async def test_purges(load, counted):
    """Purged bytes are those that purges told."""
    assert counted.by("purged_bytes_total") == {(): sum(one["bytes"] for one in load.purged if "dry_run" not in one)}


async def test_status(load, counted):
    """The API and the command say what the metrics do."""
    found = json.loads(await load.cluster.admin("/api/v1/status"))
    code, out, _ = await command("status", "--json", "--url", load.admin_url, directory=load.directory)
    assert code == 0
    told = json.loads(out)
    for screen in (found, told):
        requests = screen["requests"]
        pulls = counted.by("requests_total", "outcome", "status") - counted.by("requests_total", "outcome", "status", kind="tags")
        pulls -= counted.by("requests_total", "outcome", "status", kind="referrers")
        outcomes: Counter[str] = Counter()
        for (outcome, status), count in pulls.items():
            outcomes[outcome if status < "400" else status[0]] += count
        assert requests["errors"] == outcomes.pop("5")
        assert requests["pulls"] == sum(requests["outcomes"].values())
        assert Counter(requests["outcomes"]) == Counter({key: count for key, count in outcomes.items() if key != "4"})
        assert requests["served_bytes"] == counted.by("served_bytes_total").total()
        assert requests["upstream_bytes"] == counted.by("upstream_bytes_total").total()
        left = {entry["registry"]: entry["pulls_left"] for entry in screen["upstreams"]}
        assert left == {"docker.io": load.hub.ratelimit_remaining, "second.example": load.second.ratelimit_remaining}


async def test_status_page(load, counted):
    """The page for people has the same figures."""
    async with load.cluster.session.get(f"{load.admin_url}/") as response:
        words = " ".join(re.sub(r"<[^>]*>", " ", await response.text()).split())
    # Numbers for people have separators, and a space before their unit.
    page = re.sub(r"(?<=\d)[,\s](?=\d{3}|[KMG]iB)", "", words)
    requests = json.loads(await load.cluster.admin("/api/v1/status"))["requests"]
    assert f"of {requests['pulls']} manifests and blobs from the store; {requests['errors']} failed" in page
    served, fetched = (counted.by(name).total() for name in ("served_bytes_total", "upstream_bytes_total"))
    assert f"{format_bytes(served)} to clients, {format_bytes(fetched)} from upstreams" in page
    for hub in (load.hub, load.second):
        assert f"{hub.ratelimit_remaining} of {hub.ratelimit_limit}" in page


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def answered(load: MixedLoad) -> dict[str, str]:
    """The output of each command that the runbooks give for a question, by the question."""
    text = "".join(line for line in load.cluster.log.splitlines(keepends=True) if "last-of-" not in line)
    (load.directory / "log.json").write_text(text)
    script = "\n".join(f"echo '#{title}'\n{command}" for title, command in documented().items())
    script = script.replace("journalctl -u registry-mirror -o cat --since -1h", "cat log.json")
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "MIRROR_CONFIG": str(load.cluster.file),
        "DIGEST": load.hub.repositories[APP].tags["fresh"],
    }
    shell = await asyncio.create_subprocess_exec(
        *("bash", "-eu", "-o", "pipefail", "-c", script), cwd=load.directory, env=environment, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await asyncio.wait_for(shell.communicate(), LIMIT)
    assert shell.returncode == 0
    parts = out.decode().split("#")[1:]
    return {part.partition("\n")[0]: part.partition("\n")[2] for part in parts}


def documented() -> dict[str, str]:
    """The commands of the runbooks' questions, by the comment behind each; the first one defines `log`."""
    text = (Path(__file__).parents[2] / "docs" / "runbooks.md").read_text()
    section = text.partition("## Questions\n")[2].partition("\n## ")[0]
    return {title: command for command, title in re.findall(r"^    (.*?)\s+# (.*)$", section, re.MULTILINE)}


async def test_which_node_asks_most(load, answered):
    """The one with most requests, and the one with most bytes, as its clients have counted."""
    asked = Counter(line["client"] for line in load.lines())
    first = answered["which node asks most?"].splitlines()[0].split()
    assert first == [str(asked.total() - asked[NODES[1]]), NODES[0]]
    sent: Counter[str] = Counter()
    for line in load.lines():
        sent[line["client"]] += line["bytes"]
    assert answered["which node gets most bytes?"].splitlines()[0].split() == [str(sent[NODES[0]]), NODES[0]]


async def test_which_image_fills_the_disk(load, answered):
    """The one with the largest layers comes first."""
    first = answered["which image fills the disk?"].splitlines()[1]
    assert first.split()[:2] == [f"docker.io/{APP}:large", "4MiB"]


async def test_who_pulled_a_digest(load, answered):
    """Each pull of it by its tags or by its digest, with the client."""
    digest = load.hub.repositories[APP].tags["fresh"]
    pulls = [line for line in load.lines() if digest in (line.get("reference"), line.get("digest"))]
    assert {line["reference"] for line in pulls} >= {"1", "fresh", "limited", digest}
    told = [line.split()[1] for line in answered["who pulled this digest?"].splitlines()]
    assert Counter(told) == Counter(line["client"] for line in pulls)
    assert set(told) == set(NODES)


async def test_how_many_pulls_are_left(load, answered):
    """What upstream has counted."""
    told = answered["how many pulls are left?"]
    assert f"{load.hub.ratelimit_remaining} of {load.hub.ratelimit_limit} pulls left" in told


async def test_which_image_uses_up_the_limit(load, answered):
    """The repositories with most answers that cost a pull."""
    assert answered["which image uses up the pulls?"].split()[1] == f"docker.io/{APP}"
