"""The index: facts about tags, manifests, rights and absences, which survive a restart and can be lost without harm."""

import sqlite3
import threading
from dataclasses import replace

import pytest

from mirror.core.digest import Digest
from mirror.core.freshness import TagRecord
from mirror.core.names import ImagePattern, Repository, Tag
from mirror.storage import tags as tags_module
from mirror.storage.index import Index
from mirror.storage.manifests import ManifestRecord

DIGEST, OTHER = Digest.of(b"manifest"), Digest.of(b"other")
NGINX = Repository.parse("docker.io", "nginx")
REDIS = Repository.parse("docker.io", "redis")
LOCAL = Repository.parse("[::1]:5000", "team/app")
TAG = Tag.parse("1.27")
RECORD = TagRecord(DIGEST, "application/vnd.oci.image.index.v1+json", 1234, 10.5, 9.0, 11.25)
HELD = ManifestRecord("application/vnd.oci.image.manifest.v1+json", 77)


@pytest.fixture
def directory(tmp_path):
    return str(tmp_path / "index")


@pytest.fixture
def index(directory):
    one = Index(directory)
    yield one
    one.close()


def change_all(directory, table, query, *values):
    """Run SQL on one table behind the index's back."""
    database = sqlite3.connect(f"{directory}/{table}/cache.db")
    with database:
        database.execute(query, values)
    database.close()


@pytest.mark.parametrize("repository", [NGINX, LOCAL], ids=str)
def test_facts_are_kept_over_a_restart(index, directory, repository):
    """What was put is there for this and for the next process, exactly."""
    index.tags.put(repository, TAG, RECORD)
    index.manifests.put(repository, DIGEST, HELD)
    index.grants.put("blob", str(repository), OTHER, 5)
    again = Index(directory)
    for one in (index, again):
        assert one.tags.get(repository, TAG) == RECORD
        assert list(one.tags.matching()) == [(repository, TAG, RECORD)]
        assert one.manifests.get(repository, DIGEST) == HELD
        assert list(one.manifests.rows()) == [(repository, DIGEST)]
        assert one.grants.get("blob", str(repository), OTHER) == 5
    again.close()


def test_unknown_is_none(index):
    """Facts that nobody put are not known."""
    assert index.tags.get(NGINX, TAG) is None
    assert index.manifests.get(NGINX, DIGEST) is None
    assert index.grants.get("blob", str(NGINX), DIGEST) is None
    assert not index.negative.is_absent("manifest", NGINX, TAG)
    assert list(index.tags.matching()) == []
    assert list(index.manifests.rows()) == []


def test_tag_moves_and_goes(index):
    """A later record replaces the earlier; a deleted one is not known, and deleting it again is no error."""
    index.tags.put(NGINX, TAG, RECORD)
    moved = TagRecord(OTHER, RECORD.media_type, 1, 2.0, 3.0, 4.0, due=True)
    index.tags.put(NGINX, TAG, moved)
    assert index.tags.get(NGINX, TAG) == moved
    index.tags.delete(NGINX, TAG)
    index.tags.delete(NGINX, TAG)
    assert index.tags.get(NGINX, TAG) is None


def test_later_check_stays_whichever_process_writes_last(index, directory, monkeypatch):
    """A check is noted in one step: another process's later one cannot come between the look at the record and its change."""
    other = Index(directory)
    later = replace(RECORD, digest=OTHER, checked=20.0)
    noting = threading.Thread(target=other.tags.note_check, args=(NGINX, TAG, later, 30.0))
    write = index.tags.put

    def slowly(*args):
        noting.start()
        noting.join(0.3)
        write(*args)

    monkeypatch.setattr(index.tags, "put", slowly)
    index.tags.note_check(NGINX, TAG, RECORD, 30.0)
    noting.join()
    assert index.tags.get(NGINX, TAG).digest == OTHER
    other.close()


def test_checks_and_refusals_are_ordered_by_their_beginning(index):
    """Of a check and a refusal that overlap, the one that began later counts, in whatever order they end."""
    assert index.tags.note_refusal(NGINX, TAG, 20.0, 30.0, delete=True)
    assert index.tags.note_check(NGINX, TAG, RECORD, 30.0) == (None, None)
    later = replace(RECORD, checked=21.0)
    assert index.tags.note_check(NGINX, TAG, later, 30.0) == (None, later)
    assert not index.tags.note_refusal(NGINX, TAG, 20.5, 30.0, delete=True)
    assert index.tags.get(NGINX, TAG) == later
    assert index.tags.note_refusal(NGINX, TAG, 22.0, 30.0, delete=False)
    assert index.tags.get(NGINX, TAG) == later
    assert index.tags.note_refusal(NGINX, TAG, 22.0, 30.0, delete=True)
    assert index.tags.get(NGINX, TAG) is None


def test_tag_is_expired_as_it_is_now(index):
    """To have a tag checked changes nothing else of it, and brings back none that has gone."""
    index.tags.expire(NGINX, TAG, 15.0)
    assert index.tags.get(NGINX, TAG) is None
    # The later time is that of a clock that has been set back since.
    for when in (15.0, 1.0):
        index.tags.put(NGINX, TAG, RECORD)
        index.tags.expire(NGINX, TAG, when)
        record = index.tags.get(NGINX, TAG)
        assert record.due > record.checked
        assert replace(record, due=0.0) == RECORD


def test_last_pull(index):
    """The latest of all notes about a pull counts, and goes with its tag."""
    index.tags.put(NGINX, TAG, RECORD)
    for when, latest in ((5.0, 11.25), (20.0, 20.0)):
        index.tags.note_pull(NGINX, TAG, when)
        ((_, _, record),) = index.tags.matching()
        assert record.pulled == latest
    index.tags.delete(NGINX, TAG)
    index.tags.put(NGINX, TAG, RECORD)
    ((_, _, record),) = index.tags.matching()
    assert record.pulled == 11.25


def test_manifests_of_repositories_are_apart(index):
    """What one repository holds is nothing in another."""
    index.manifests.put(NGINX, DIGEST, HELD)
    assert index.manifests.get(REDIS, DIGEST) is None
    index.delete_manifest(REDIS, DIGEST)
    assert index.manifests.get(NGINX, DIGEST) == HELD
    index.delete_manifest(NGINX, DIGEST)
    assert index.manifests.get(NGINX, DIGEST) is None


def test_grants_of_kinds_and_scopes_are_apart(index):
    """A digest that is a manifest in one scope is neither a blob there nor anything in another scope."""
    index.grants.put("manifest", str(NGINX), DIGEST, 7)
    assert index.grants.get("manifest", str(NGINX), DIGEST) == 7
    assert index.grants.get("blob", str(NGINX), DIGEST) is None
    assert index.grants.get("manifest", str(REDIS), DIGEST) is None
    assert index.grants.get("manifest", "docker.io", DIGEST) is None


def test_empty_blob_is_granted(index):
    """A grant of no bytes is a grant."""
    index.grants.put("blob", "docker.io", DIGEST, 0)
    assert index.grants.get("blob", "docker.io", DIGEST) == 0


def test_grants_of_what_is_gone_are_dropped(index, directory):
    """Grants go with the content they are about, in all scopes, and so do unreadable ones; the others stay."""
    for scope in ("docker.io", str(LOCAL)):
        index.grants.put("blob", scope, DIGEST, 1)
        index.grants.put("blob", scope, OTHER, 1)
    index.grants.put("blob", "nonsense", DIGEST, 1)
    change_all(directory, "grants", "UPDATE Cache SET key = 'blob' WHERE key LIKE '%nonsense%'")
    assert index.grants.drop(lambda digest: digest == OTHER) == 3
    for scope in ("docker.io", str(LOCAL)):
        assert index.grants.get("blob", scope, DIGEST) is None
        assert index.grants.get("blob", scope, OTHER) == 1


def test_absence_is_remembered_for_its_time(index, directory):
    """A no is good until it expires; one for no time at all is not remembered."""
    index.negative.put("blob", NGINX, DIGEST, 30)
    assert index.negative.is_absent("blob", NGINX, DIGEST)
    assert not index.negative.is_absent("manifest", NGINX, DIGEST)
    change_all(directory, "absent", "UPDATE Cache SET expire_time = 1.0")
    assert not index.negative.is_absent("blob", NGINX, DIGEST)
    index.negative.put("manifest", NGINX, TAG, 0)
    assert not index.negative.is_absent("manifest", NGINX, TAG)


def test_absence_is_forgotten_by_pattern(index):
    """Noes about the repositories of a pattern are forgotten, and no others."""
    for repository in (NGINX, REDIS):
        index.negative.put("manifest", repository, TAG, 30)
    index.negative.delete_matching(ImagePattern.parse("nginx:*"))
    assert not index.negative.is_absent("manifest", NGINX, TAG)
    assert index.negative.is_absent("manifest", REDIS, TAG)


@pytest.mark.parametrize("value", ["not json", "null", "[]", '"text"', "{}", '{"digest": "sha256:1"}', '{"digest": 3}'])
def test_nonsense_is_not_known(index, directory, value):
    """JSON that is no record is a fact not known, never an exception."""
    index.tags.put(NGINX, TAG, RECORD)
    index.manifests.put(NGINX, DIGEST, HELD)
    index.grants.put("blob", "docker.io", DIGEST, 1)
    for table in ("tags", "manifests", "grants"):
        change_all(directory, table, "UPDATE Cache SET value = ?", value)
    assert index.tags.get(NGINX, TAG) is None
    assert index.manifests.get(NGINX, DIGEST) is None
    assert index.grants.get("blob", "docker.io", DIGEST) is None
    assert list(index.tags.matching()) == []


@pytest.mark.parametrize("key", ["", "tag", "tag|", "tag|docker.io", "tag|docker.io/x|", "tag|a/B|c", "tag|docker.io/x|sha256:1"])
def test_nonsense_keys_are_left_out(index, directory, key):
    """A key that names nothing is left out of every walk, and hides no other."""
    index.tags.put(NGINX, Tag.parse("a"), RECORD)
    index.tags.put(NGINX, Tag.parse("b"), RECORD)
    index.manifests.put(NGINX, DIGEST, HELD)
    index.negative.put("manifest", NGINX, TAG, 30)
    change_all(directory, "tags", "UPDATE Cache SET key = ? WHERE key LIKE '%|a'", key)
    for table in ("manifests", "absent"):
        change_all(directory, table, "UPDATE Cache SET key = ?", key)
    assert [str(tag) for _, tag, _ in index.tags.matching()] == ["b"]
    assert list(index.manifests.rows()) == []
    index.negative.delete_matching(ImagePattern.parse("nginx"))


def test_rows_of_what_is_gone_are_dropped(index):
    """A tag without its manifest is forgotten once nobody asks for it any more; a manifest's row goes with it."""
    for name, digest, checked, pulled in [
        ("held", OTHER, 1, 1),
        ("asked lately", DIGEST, 1, 50),
        ("checked lately", DIGEST, 50, 1),
        ("forgotten", DIGEST, 1, 1),
        ("noted", DIGEST, 1, 1),
    ]:
        tag = Tag.parse(name.replace(" ", "_"))
        index.tags.put(NGINX, tag, TagRecord(digest, "", 1, float(checked), 1.0, float(pulled)))
    index.tags.note_pull(NGINX, Tag.parse("noted"), 60)
    for digest in (DIGEST, OTHER):
        index.manifests.put(NGINX, digest, HELD)
    assert index.tags.drop(lambda digest: digest == OTHER, 40) == 1
    assert [str(tag) for _, tag, _ in index.tags.matching()] == ["asked_lately", "checked_lately", "held", "noted"]
    assert index.drop_manifests(lambda digest: digest == OTHER) == 1
    assert list(index.manifests.rows()) == [(NGINX, OTHER)]


def test_notes_without_a_tag_are_dropped(index, directory):
    """A pull that is noted for a tag of which nothing is known does not stay for ever."""
    index.tags.put(NGINX, TAG, RECORD)
    index.tags.note_pull(NGINX, TAG, 20)
    index.tags.note_pull(REDIS, TAG, 20)
    assert index.tags.drop(lambda digest: True, 100) == 0
    database = sqlite3.connect(f"{directory}/tags/cache.db")
    keys = database.execute("SELECT key FROM Cache ORDER BY key").fetchall()
    database.close()
    assert keys == [(f"pulled|{NGINX}|{TAG}",), (f"tag|{NGINX}|{TAG}",)]


@pytest.fixture
def keys_read(monkeypatch):
    """The keys that the index has taken apart."""
    read = []
    split = tags_module.parse_key
    monkeypatch.setattr(tags_module, "parse_key", lambda key: read.append(key) or split(key))
    return read


def fill(index, repositories, tags):
    for number in range(repositories):
        for tag in range(tags):
            record = replace(RECORD, digest=Digest.of(b"%d %d" % (number, tag)))
            index.tags.put(Repository.parse("docker.io", f"team/app-{number}"), Tag(f"{tag}"), record)


def test_tags_of_a_digest_are_looked_up(index, keys_read):
    """Which tags name a digest costs what they are, not what the repository has; a moved tag is found by its new digest only."""
    fill(index, 2, 50)
    index.tags.put(NGINX, TAG, RECORD)
    repository = Repository.parse("docker.io", "team/app-1")
    keys_read.clear()
    assert index.tags.naming(repository, OTHER) == []
    assert index.tags.naming(repository, Digest.of(b"1 7")) == [Tag("7")]
    assert index.tags.naming(repository, Digest.of(b"0 7")) == []
    assert len(keys_read) == 2
    index.tags.put(NGINX, TAG, replace(RECORD, digest=OTHER))
    assert (index.tags.naming(NGINX, DIGEST), index.tags.naming(NGINX, OTHER)) == ([], [TAG])
    index.tags.delete(NGINX, TAG)
    assert index.tags.naming(NGINX, OTHER) == []


def test_repositories_are_looked_up(index, keys_read):
    """Which repositories have tags costs what they are, not what their tags are; none that sorts oddly is lost."""
    assert list(index.tags.repositories()) == []
    fill(index, 3, 50)
    names = ["a", "a-b", "a.b", "a/b", "a_b", "a/b-c"]
    for name in names:
        index.tags.put(Repository.parse("quay.io", name), TAG, RECORD)
        index.tags.put(Repository.parse("quay.io", name), Tag("2"), RECORD)
    keys_read.clear()
    found = [str(repository) for repository, _ in index.tags.repositories()]
    assert sorted(found) == sorted([f"docker.io/team/app-{n}" for n in range(3)] + [f"quay.io/{name}" for name in names])
    assert len(keys_read) == len(found)


@pytest.mark.parametrize(
    ("pattern", "found", "most"),
    [
        ("team/app-1:7", 1, 1),
        ("team/app-1", 50, 50),
        ("team/app-1:*7", 5, 50),
        ("team/*:7", 3, 150),
        ("quay.io/team/app-1", 0, 0),
    ],
)
def test_tags_of_a_pattern(index, keys_read, pattern, found, most):
    """A pattern that names a repository, or a tag, costs what that has."""
    fill(index, 3, 50)
    assert len(list(index.tags.matching(ImagePattern.parse(pattern)))) == found
    assert len(keys_read) == most


def test_rows_of_an_earlier_version_are_found(directory):
    """Tags and manifests that were written without labels are found by their digest."""
    index = Index(directory)
    index.tags.put(NGINX, TAG, RECORD)
    index.manifests.put(NGINX, DIGEST, HELD)
    index.close()
    for table in ("tags", "manifests"):
        change_all(directory, table, "UPDATE Cache SET tag = NULL")
        change_all(directory, table, "PRAGMA user_version = 0")
        change_all(directory, table, "INSERT INTO Cache (key, raw, mode, value) VALUES ('tag|x|y', 1, 3, 'no JSON')")
    index = Index(directory)
    assert index.tags.naming_anywhere(DIGEST) == [(NGINX, TAG)]
    assert index.manifests.holders(DIGEST) == [NGINX]
    index.close()
