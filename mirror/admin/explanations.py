"""The explanation of an image in JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mirror.cache.explainer import Explanation, Forecast, TagFacts
from mirror.cache.last_answers import LastAnswer
from mirror.core.digest import Digest
from mirror.core.tag_moves import HoldRule, Keep, Reason, Refuse
from mirror.storage.inventory import StoredBlob, StoredManifest

if TYPE_CHECKING:
    # Imported only where there is a rule of `trust`.
    from mirror.cache.trust_gate import TrustFacts

    # Imported only by a mirror with a bucket.
    from mirror.objects.inventory import ImageInBucket


def describe(explanation: Explanation, downloads: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return an explanation as `explain` answers it.

    Args:
        downloads: the running downloads of all processes.
    """
    arriving = {download["digest"]: download["bytes"] for download in downloads}
    separator = "@" if isinstance(explanation.reference, Digest) else ":"
    held = [manifest for manifest in explanation.manifests if manifest.is_held]
    return {
        "image": f"{explanation.repository}{separator}{explanation.reference}",
        "digest": None if explanation.digest is None else str(explanation.digest),
        "held": _held(held),
        "policy": explanation.policy,
        "tag": None if explanation.tag is None else _tag(explanation.tag),
        "pulled": explanation.pulled or None,
        "last": None if explanation.last is None else _last(explanation.last),
        "miss": None if explanation.miss is None else asdict(explanation.miss),
        "trust": None if explanation.trust is None else _trust(explanation.trust),
        "pull": _pull(explanation.forecast),
        "platforms": [_manifest(manifest, arriving) for manifest in explanation.manifests],
    }


def describe_bucket(found: ImageInBucket) -> dict[str, Any]:
    """Return what the bucket has of an image as `explain` answers it."""
    tag = None if found.tag is None else {"digest": str(found.tag.digest), "checked": found.tag.checked}
    return {
        "tag": tag,
        "manifests": found.manifests,
        "blobs": found.blobs,
        "missing": [str(digest) for digest in found.missing],
        "bytes": found.size,
        "problem": found.problem,
    }


def _held(manifests: list[StoredManifest]) -> str:
    """Return one word: `no`, `partial`, or `complete` if all of at least one platform is held."""
    if any(manifest.is_complete for manifest in manifests):
        return "complete"
    return "partial" if manifests else "no"


def _tag(facts: TagFacts) -> dict[str, Any]:
    record = facts.record
    return {
        "checked": None if record is None else record.checked,
        "changed": None if record is None else record.changed,
        # JSON has no infinity.
        "fresh_until": facts.fresh_until if 0 < facts.fresh_until < math.inf else None,
        "denied": record is not None and record.denied,
        "ttl": facts.ttl if facts.ttl < math.inf else None,
        "ttl_rule": facts.rule,
        "pinned": facts.pinned,
        "hold_rule": None if facts.hold_rule is None else _hold_rule(facts.hold_rule),
        "held_back": None if facts.held_back is None else _held_back(facts.held_back),
    }


def _hold_rule(rule: HoldRule) -> dict[str, Any]:
    return {"cooldown": rule.cooldown, "cooldown_new": "refuse" if rule.refuses_new else "serve", "freeze": rule.freeze}


def _held_back(decision: Keep | Refuse) -> dict[str, Any]:
    reason = decision.reason if isinstance(decision, Keep) else Reason.COOLDOWN
    return {"digest": str(decision.digest), "reason": reason.value, "until": decision.until}


def _trust(facts: TrustFacts) -> dict[str, Any]:
    verdict = facts.verdict
    return {
        "rule": facts.rule,
        "mode": "enforce" if facts.enforced else "warn",
        "result": None if verdict is None else verdict.result,
        "why": None if verdict is None else verdict.why,
        "reached": None if verdict is None else verdict.reached,
    }


def _last(answer: LastAnswer) -> dict[str, Any]:
    return {**asdict(answer), "outcome": "ERROR" if answer.outcome is None else answer.outcome.value}


def _pull(forecast: Forecast) -> dict[str, Any]:
    outcome = None if forecast.outcome is None else forecast.outcome.value
    return {"action": forecast.action.value, "outcome": outcome, "why": forecast.why, "stale_until": forecast.stale_until}


def _manifest(manifest: StoredManifest, arriving: Mapping[str, int]) -> dict[str, Any]:
    blobs = [_blob(blob, arriving) for blob in manifest.blobs]
    return {
        "platform": None if manifest.platform is None else str(manifest.platform),
        "digest": str(manifest.digest),
        "held": manifest.is_held,
        "complete": manifest.is_complete,
        "bytes": sum(blob["bytes"] for blob in blobs),
        "size": sum(blob["size"] for blob in blobs),
        "blobs": blobs,
    }


def _blob(blob: StoredBlob, arriving: Mapping[str, int]) -> dict[str, Any]:
    digest = str(blob.digest)
    if blob.is_held:
        state, size = "held", blob.size
    elif digest in arriving:
        state, size = "downloading", arriving[digest]
    else:
        state, size = "foreign" if blob.is_foreign else "missing", 0
    return {"digest": digest, "media_type": blob.media_type, "size": blob.size, "state": state, "bytes": size}
