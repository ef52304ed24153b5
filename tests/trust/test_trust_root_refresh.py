"""The library's own trust root is renewed from a repository of TUF, and nothing is lost if that fails."""

import datetime as dt
import http.server
import threading
from functools import partial

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from mirror.trust import keyless
from mirror.trust.keyless import Keyless
from mirror.trust.verdict import Result
from tests.trust.test_keyless import SIGSTORE, bundle, judge

LATER = dt.datetime.now(dt.UTC).replace(microsecond=0) + dt.timedelta(days=1)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def make_repository(folder):
    """A repository of TUF with one key, and the trust root of the test's sigstore; returns its first root."""
    signer = CryptoSigner.generate_ecdsa()
    root = Root(expires=LATER, consistent_snapshot=False)
    for role in ("root", "timestamp", "snapshot", "targets"):
        root.add_key(signer.public_key, role)
    targets = Targets(expires=LATER)
    (folder / "targets").mkdir()
    path = folder / "targets" / "trusted_root.json"
    path.write_text(SIGSTORE.trust_root)
    targets.targets["trusted_root.json"] = TargetFile.from_file("trusted_root.json", str(path))
    snapshot, timestamp = Snapshot(expires=LATER), Timestamp(expires=LATER, snapshot_meta=MetaFile(1))
    names = {"1.root.json": root, "targets.json": targets, "snapshot.json": snapshot, "timestamp.json": timestamp}
    for name, signed in names.items():
        metadata = Metadata(signed)
        metadata.sign(signer)
        metadata.to_file(str(folder / name))
    return (folder / "1.root.json").read_bytes()


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A folder that is served where the mirror looks for sigstore's repository; returns the folder."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        embedded = keyless.read_embedded
        url, production = f"http://127.0.0.1:{server.server_port}", keyless._PRODUCTION
        first = make_repository(tmp_path)
        monkeypatch.setattr(keyless, "_PRODUCTION", url)
        monkeypatch.setattr(
            keyless, "read_embedded", lambda name, _: first if name == "root.json" else embedded(name, production)
        )
        monkeypatch.setattr(keyless, "_REFRESH_TIMEOUT_S", 60.0)
        yield tmp_path
        server.shutdown()


def test_refresh(repository):
    """A root that the library does not have yet is fetched before the first verdict."""
    assert judge(Keyless(None, refresh=True), bundle()).result is Result.SIGNED


def test_not_refreshed_where_it_is_offline(repository):
    assert judge(Keyless(None, refresh=False), bundle()).result is Result.WRONG


@pytest.mark.parametrize("broken", ["timestamp.json", "targets/trusted_root.json"])
def test_broken_repository(repository, broken):
    """If the repository is down or damaged the root at hand is used, and the signature is judged by that."""
    (repository / broken).write_text("{}")
    assert judge(Keyless(None, refresh=True), bundle()).result is Result.WRONG


def test_repeated_soon_after_a_failure(repository, monkeypatch):
    """A repository that is down at the first verdict is asked again before the next day."""
    monkeypatch.setattr(keyless, "_RETRY_INTERVAL_S", 0.0)
    path, trusts = repository / "timestamp.json", Keyless(None, refresh=True)
    good = path.read_bytes()
    path.write_text("{}")
    assert judge(trusts, bundle()).result is Result.WRONG
    path.write_bytes(good)
    assert judge(trusts, bundle()).result is Result.SIGNED
