"""Whoever wants to know hears of each tag that has moved, whatever state the receiver is in, and nobody waits for that."""

import asyncio
import contextlib
import hashlib
import hmac
import json
import uuid
from datetime import datetime

import pytest

from mirror.cache.tag_store import Move
from mirror.config.sections import Storage
from mirror.core.digest import Digest
from mirror.core.names import Repository, Tag
from mirror.storage.store import Store
from mirror.sync.notifier import Notifier, RetryPolicy
from mirror.upstream.webhook import Webhook
from tests.mirror.syncing import Orders
from tests.support.clock import Clock
from tests.support.mirrors import MirrorUnderTest
from tests.support.names import APP, TAG
from tests.support.receiver import Receiver
from tests.support.waiting import LIMIT, eventually

QUICK = RetryPolicy(attempts=3, base=0.01, longest=0.02)
SECRET = "a key that nobody guesses"


@pytest.fixture
def secret_file(tmp_path):
    path = tmp_path / "notify.secret"
    path.write_text(SECRET + "\n")
    return path


@contextlib.asynccontextmanager
async def mirror_that_tells(hub, tmp_path, receiver, monkeypatch, secret_file=None):
    """A mirror that has the tag, and its clock."""
    notify = {"url": receiver.url, "secret_file": None if secret_file is None else str(secret_file)}
    async with MirrorUnderTest(hub, tmp_path / "store", sync={"notify": notify}) as mirror:
        mirror.services.notifier.policy = QUICK
        yield mirror, Clock(mirror, monkeypatch)


async def pull(mirror, image, tag="1"):
    await mirror.get(f"/v2/{APP}/manifests/{tag}")
    for blob in [image.config, *image.layers]:
        await mirror.get(f"/v2/{APP}/blobs/{blob.digest}")
    await mirror.idle()


def size(image):
    """Bytes of a whole image for one platform."""
    return len(image.raw) + image.config.size + sum(blob.size for blob in image.layers)


def signature(key, body):
    """As the documentation tells receivers to compute it."""
    return "sha256=" + hmac.new(key.encode(), body, hashlib.sha256).hexdigest()


# ---- a whole mirror


async def test_a_move_is_told(hub, tmp_path, monkeypatch, secret_file, log):
    """Old and new digest, the bytes that are held of each, signed; neither the key nor the URL's query gets into the log."""
    async with Receiver() as receiver, mirror_that_tells(hub, tmp_path, receiver, monkeypatch, secret_file) as (mirror, clock):
        old = hub.add_image(APP, "1", layers=[b"old" * 100])
        await pull(mirror, old)
        new = hub.add_image(APP, "1", layers=[b"new"])
        clock.advance(61)
        assert (await mirror.get(TAG)).body == new.raw
        (told,) = await receiver.got(1)
        body = json.loads(told.body)
        when = datetime.fromisoformat(body.pop("time"))
        assert abs(when.timestamp() - clock()) < 10
        assert body == {
            "event": "tag_moved",
            "image": f"docker.io/{APP}:1",
            "registry": "docker.io",
            "repository": APP,
            "tag": "1",
            "old": {"digest": old.digest, "size": size(old)},
            "new": {"digest": new.digest, "size": len(new.raw)},
        }
        assert told.line == "POST /hook?token=hunter2 HTTP/1.1"
        assert told.headers["content-type"] == "application/json"
        assert told.headers["x-registry-mirror-event"] == "tag_moved"
        assert str(uuid.UUID(told.headers["x-registry-mirror-delivery"])) == told.headers["x-registry-mirror-delivery"]
        assert told.headers["x-registry-mirror-signature"] == signature(SECRET, told.body)
    assert not [word for word in ("hunter2", SECRET) if word in str(log)]


async def test_only_moves_are_told(hub, tmp_path, monkeypatch):
    """A tag that is new here, or that upstream confirms, is no news; without a key nothing is signed."""
    async with Receiver() as receiver, mirror_that_tells(hub, tmp_path, receiver, monkeypatch) as (mirror, clock):
        hub.add_image(APP, "1")
        await mirror.get(TAG)
        clock.advance(61)
        assert (await mirror.get(TAG)).cache == "REVALIDATED"
        new = hub.add_image(APP, "1", layers=[b"new"])
        clock.advance(61)
        await mirror.get(TAG)
        (told,) = await receiver.got(1)
        assert json.loads(told.body)["new"]["digest"] == new.digest
        assert "x-registry-mirror-signature" not in told.headers
        assert await mirror.metric("notifications_total", result="failed") == 0


async def test_tried_again_until_it_arrives(hub, tmp_path, monkeypatch):
    """A receiver that fails and cuts is sent the same again, under the same name, so that it can tell."""
    async with Receiver(500, "cut") as receiver, mirror_that_tells(hub, tmp_path, receiver, monkeypatch) as (mirror, clock):
        hub.add_image(APP, "1")
        await mirror.get(TAG)
        hub.add_image(APP, "1", layers=[b"new"])
        clock.advance(61)
        await mirror.get(TAG)
        told = await receiver.got(3)
        assert len({(one.headers["x-registry-mirror-delivery"], one.body) for one in told}) == 1
        await eventually(lambda: mirror.metric("notifications_total", result="sent"))
        assert len(receiver.received) == 3


async def test_a_silent_receiver_delays_nobody(hub, tmp_path, monkeypatch):
    """The pull that finds the move, and those after it, are answered while the receiver holds the notification; so is SIGTERM."""
    async with Receiver("stall", "stall") as receiver:
        async with mirror_that_tells(hub, tmp_path, receiver, monkeypatch) as (mirror, clock):
            hub.add_image(APP, "1")
            await mirror.get(TAG)
            for content in (b"second", b"third"):
                image = hub.add_image(APP, "1", layers=[content])
                clock.advance(61)
                assert (await mirror.get(TAG)).body == image.raw
                await receiver.got(1)
            assert not receiver.release.is_set()
            assert await mirror.metric("notifications_total", result="sent") == 0
        assert not receiver.release.is_set()


async def test_a_run_tells_and_does_not_wait(hub, tmp_path, monkeypatch):
    """What a run has brought is told with its whole size, and a silent receiver keeps no run from its end."""
    async with Receiver("stall") as receiver, mirror_that_tells(hub, tmp_path, receiver, monkeypatch) as (mirror, _):
        images = {}
        for tag in ("1", "2"):
            await pull(mirror, hub.add_image(APP, tag), tag)
            images[tag] = hub.add_image(APP, tag, layers=[f"new {tag}".encode()])
        order = await Orders(mirror).sync()
        assert order["result"] == "completed"
        assert not receiver.release.is_set()
        receiver.release.set()
        told = {body["tag"]: body["new"] for body in (json.loads(one.body) for one in await receiver.got(3))}
        assert told == {tag: {"digest": image.digest, "size": size(image)} for tag, image in images.items()}


async def test_reload_changes_who_is_told(hub, tmp_path, monkeypatch):
    """What waits for a receiver that does not answer goes to the one that is named in its place."""
    async with (
        Receiver("cut", "cut") as first,
        Receiver() as second,
        mirror_that_tells(hub, tmp_path, first, monkeypatch) as (mirror, clock),
    ):
        mirror.services.notifier.policy = RetryPolicy(base=0.2, longest=0.2)
        hub.add_image(APP, "1")
        await mirror.get(TAG)
        hub.add_image(APP, "1", layers=[b"second"])
        clock.advance(61)
        await mirror.get(TAG)
        (told,) = await first.got(1)
        await mirror.reload(sync={"notify": {"url": second.url}})
        (again,) = await second.got(1)
        assert again.headers["x-registry-mirror-delivery"] == told.headers["x-registry-mirror-delivery"]


# ---- the notifier by itself


class World:
    """A notifier with a store of its own, and what it has counted."""

    def __init__(self, tmp_path, policy=QUICK):
        self.counted = []
        self.store = Store(Storage(path=tmp_path / "store", min_free=0))
        self.notifier = Notifier(self.store.files, self.store.threads.write, self.counted.append, policy)

    async def __aenter__(self):
        self._task = asyncio.create_task(self.notifier.run())
        return self

    async def __aexit__(self, *_):
        await self.stop()
        self.store.close()

    async def stop(self):
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def move(self, tag):
        old, new = Digest.of(b"old"), Digest.of(tag.encode())
        self.notifier.notify(Move(Repository("docker.io", APP), Tag(tag), old, new, 1_800_000_000.5, 1_800_000_000.0))

    async def has_counted(self, *results):
        await eventually(lambda: len(self.counted) >= len(results))
        assert self.counted == list(results)


def tags(received):
    return [json.loads(one.body)["tag"] for one in received]


async def test_what_is_not_held_has_no_size(tmp_path):
    """An image of which nothing is held has null for its size; the time is that of the move, in UTC."""
    async with Receiver() as receiver, World(tmp_path) as world:
        world.notifier.configure(Webhook(receiver.url))
        world.move("1")
        (told,) = await receiver.got(1)
        body = json.loads(told.body)
        assert (body["old"]["size"], body["new"]["size"]) == (None, None)
        assert body["time"] == "2027-01-15T08:00:00.500Z"


@pytest.mark.parametrize("refusal", [400, 401, 404, 410])
async def test_refused_is_refused(tmp_path, log, refusal):
    """What the receiver calls wrong is not sent again, and does not keep back the next."""
    async with Receiver(refusal) as receiver, World(tmp_path) as world:
        world.notifier.configure(Webhook(receiver.url))
        world.move("1")
        world.move("2")
        await world.has_counted("failed", "sent")
        assert tags(receiver.received) == ["1", "2"]
        (event,) = [event for event in log if event["event"] == "notification_failed"]
        assert (event["image"], event["attempts"]) == (f"docker.io/{APP}:1", 1)
        assert "hunter2" not in str(log)


@pytest.mark.parametrize("trouble", [408, 429, 500, 503, "cut"])
async def test_trouble_passes(tmp_path, trouble):
    """What may be otherwise the next time is tried again."""
    async with Receiver(trouble) as receiver, World(tmp_path) as world:
        world.notifier.configure(Webhook(receiver.url))
        world.move("1")
        await world.has_counted("sent")
        assert tags(receiver.received) == ["1", "1"]


async def test_a_receiver_that_is_not_there(tmp_path, log):
    """Attempts are counted, so that what can never arrive does not keep back what can."""
    async with Receiver(500, 500, 500) as receiver, World(tmp_path) as world:
        world.notifier.configure(Webhook(receiver.url))
        world.move("1")
        world.move("2")
        await world.has_counted("failed", "sent")
        assert tags(receiver.received) == ["1", "1", "1", "2"]
        (event,) = [event for event in log if event["event"] == "notification_failed"]
        assert event["attempts"] == QUICK.attempts
        assert "hunter2" not in str(log)


async def test_redirects_are_not_followed(tmp_path):
    """The receiver does not choose another one: that could be inside."""
    async with Receiver() as other:
        async with Receiver(f"HTTP/1.1 307 Elsewhere\r\nLocation: {other.url}") as receiver, World(tmp_path) as world:
            world.notifier.configure(Webhook(receiver.url))
            world.move("1")
            await world.has_counted("failed")
        assert other.received == []


async def test_the_oldest_give_way(tmp_path, log):
    """While a receiver is silent no more than so many wait; those that give way are counted, and logged once."""
    async with Receiver("stall") as receiver, World(tmp_path, RetryPolicy(attempts=2, base=0.01, waiting=2)) as world:
        world.notifier.configure(Webhook(receiver.url))
        world.move("0")
        await receiver.got(1)
        for tag in "12345":
            world.move(tag)
        assert world.counted == ["dropped"] * 3
        assert len([event for event in log if event["event"] == "notifications_dropped"]) == 1
        receiver.release.set()
        await world.has_counted(*["dropped"] * 3, *["sent"] * 3)
        assert tags(receiver.received) == ["0", "0", "4", "5"]


async def test_the_key_is_read_at_each_use(tmp_path, secret_file):
    """A new key counts at once; with none that can be read nothing is sent."""
    async with Receiver() as receiver, World(tmp_path) as world:
        world.notifier.configure(Webhook(receiver.url, secret_file))
        world.move("1")
        await world.has_counted("sent")
        secret_file.write_text("\n")
        world.move("2")
        await world.has_counted("sent", "failed")
        secret_file.unlink()
        world.move("3")
        await world.has_counted("sent", "failed", "failed")
        secret_file.write_text("another key")
        world.move("4")
        await world.has_counted("sent", "failed", "failed", "sent")
        assert tags(receiver.received) == ["1", "4"]
        for one, key in zip(receiver.received, (SECRET, "another key"), strict=True):
            assert one.headers["x-registry-mirror-signature"] == signature(key, one.body)


async def test_nobody_to_tell(tmp_path):
    """Without a receiver nothing waits; what waits for one that is taken away is dropped."""
    async with Receiver("cut") as receiver, World(tmp_path, RetryPolicy(base=0.1, longest=0.1)) as world:
        world.move("1")
        world.notifier.configure(Webhook(receiver.url))
        world.move("2")
        await receiver.got(1)
        world.notifier.configure(None)
        await world.has_counted("dropped")
        assert tags(receiver.received) == ["2"]


async def test_one_last_attempt(tmp_path):
    """When the mirror stops, all that waits is tried once more, under the names that it had."""
    async with Receiver(500) as receiver, World(tmp_path, RetryPolicy(base=1000.0, longest=1000.0)) as world:
        world.notifier.configure(Webhook(receiver.url))
        world.move("1")
        world.move("2")
        await receiver.got(1)
        await world.stop()
        await world.notifier.close()
        assert tags(receiver.received) == ["1", "1", "2"]
        names = [one.headers["x-registry-mirror-delivery"] for one in receiver.received]
        assert names[0] == names[1] != names[2]
        assert world.counted == ["sent", "sent"]


async def test_the_last_attempt_is_bounded(tmp_path, log):
    """A receiver that is silent does not keep the mirror from stopping; what is lost is counted."""
    async with Receiver("stall", "stall") as receiver, World(tmp_path, RetryPolicy(last=0.1)) as world:
        world.notifier.configure(Webhook(receiver.url))
        world.move("1")
        world.move("2")
        await receiver.got(1)
        await world.stop()
        async with asyncio.timeout(LIMIT):
            await world.notifier.close()
        assert world.counted == ["dropped", "dropped"]
        (event,) = [event for event in log if event["event"] == "notifications_lost"]
        assert event["count"] == 2


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/x?token=hunter2", "http://no-such-host.invalid/x?token=hunter2"])
async def test_no_connection(tmp_path, log, url):
    """A receiver that cannot be reached is one line in the log, without what may be secret in its URL."""
    async with World(tmp_path) as world:
        world.notifier.configure(Webhook(url))
        world.move("1")
        await world.has_counted("failed")
        assert [event["attempts"] for event in log if event["event"] == "notification_failed"] == [3]
        assert "hunter2" not in str(log)
