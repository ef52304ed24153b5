"""Tags of a repository in the bucket: few are used, however many there are."""

import json
import types

from mirror.core.names import Repository
from mirror.objects.bucket import ListedObject, SmallObject
from mirror.objects.reader import ObjectReader
from tests.objects.test_tag_records import GOOD

APP, SCOPE = Repository.parse("docker.io", "library/app"), "docker.io~0"
PAGE, PAGES, MOST = 100, 50, 10


class Listed(ListedObject):
    """Counts those that are kept."""

    kept = most_kept = 0

    def __init__(self, key, size, written):
        super().__init__(key, size, written)
        Listed.kept += 1
        Listed.most_kept = max(Listed.kept, Listed.most_kept)

    def __del__(self):
        Listed.kept -= 1


class Bucket:
    """Has the records of many tags, the latest ones in the middle."""

    async def pages(self, prefix):
        for page in range(PAGES):
            yield [Listed(f"{prefix}/{n}.json", 9, float(-abs(n - 2500.4))) for n in range(page * PAGE, (page + 1) * PAGE)]

    async def read(self, key, limit):
        return SmallObject(json.dumps(GOOD).encode(), None, {})


async def test_only_the_latest_are_kept(monkeypatch):
    """A repository may have a hundred thousand tags."""
    monkeypatch.setattr(Listed, "most_kept", 0)
    reader = ObjectReader(Bucket(), types.SimpleNamespace(), print, print, may_delete=False)
    reader.scopes = {"docker.io": SCOPE}
    found = [str(tag) async for tag, _ in reader.tags(APP, MOST)]
    assert sorted(map(int, found)) == list(range(2496, 2506))
    assert Listed.most_kept <= 3 * (PAGE + MOST)
