"""Purges of all nodes of a cluster: each one carries a purge out on its own store, and reports what it has removed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from dataclasses import dataclass, replace
from typing import Any

import structlog

from mirror.cluster.events import Event
from mirror.cluster.link import LinkDown, Script
from mirror.cluster.node import ClusterNode
from mirror.cluster.turns import attempts
from mirror.core.names import ImagePattern, Tag, is_glob
from mirror.errors import MirrorError
from mirror.maintenance.purge import Purge, PurgeRequest, PurgeResult
from mirror.metrics import Metrics
from mirror.storage.rows import MALFORMED
from mirror.storage.store import Store

log = structlog.get_logger(__name__)

_REPORT_TTL_S = 3600
_WAIT_S = 60.0

_REPORT = Script("redis.call('HSET', KEYS[1], ARGV[1], ARGV[2]); redis.call('EXPIRE', KEYS[1], ARGV[3])")
_REPORTS = Script("return redis.call('HGETALL', KEYS[1])")


@dataclass(frozen=True)
class NodePurge:
    """What a node has done about a purge.

    Attributes:
        state: `purged`; `told` if it has not reported yet; `failed`.
        cause: of `failed`.
        result: None unless it has purged.
    """

    name: str
    state: str
    cause: str | None = None
    result: PurgeResult | None = None


@dataclass(frozen=True)
class NodePurges:
    """What the nodes have done about a purge.

    Attributes:
        untold: why the other nodes were not told; None if they were.
    """

    nodes: list[NodePurge]
    untold: str | None = None


class ClusterPurge:
    """Tells other nodes of purges, and carries out theirs. Outlives reloads."""

    def __init__(self, store: Store, metrics: Metrics, node: ClusterNode) -> None:
        self._store = store
        self._metrics = metrics
        self._node = node
        node.events.handlers["purged"] = self._purged

    async def tell(self, request: PurgeRequest) -> str | None:
        """Tell the other nodes to purge, and delete what is known of the tags in Redis.

        Returns the name of the order; None (logged) if Redis does not answer: then no node was told.
        """
        keys = await asyncio.to_thread(self._shared_keys, request)
        try:
            return await self._node.events.publish("purged", _fields(request), keys)
        except LinkDown as error:
            log.warning("purge_not_shared", match=str(request.pattern), cause=str(error), consequence="only this node purges")
            return None

    async def results(self, order: str | None, own: PurgeResult, *, wait: bool) -> NodePurges:
        """Return what each node has done about an order, this one first.

        Args:
            order: what `tell` has returned.
            own: what this node has removed.
            wait: until all nodes that live have reported, for a minute at most.
        """
        mine = NodePurge(self._node.name, "purged", result=own)
        if order is None:
            return NodePurges([mine], "Redis does not answer, so the other nodes were not told")
        found: dict[str, NodePurge] | None = None
        async for _ in attempts(_WAIT_S):
            with contextlib.suppress(LinkDown):
                found = await self._reports(order)
            if not wait or (found is not None and all(one.state != "told" for one in found.values())):
                break
        found = found or {}
        return NodePurges([mine, *(found[name] for name in sorted(found))])

    async def _reports(self, order: str) -> dict[str, NodePurge]:
        members, words = await self._node.members.list(), await self._node.link.call(_REPORTS, [self._node.keys.purge(order)])
        found = {member.name: NodePurge(member.name, "told") for member in members if member.name != self._node.name}
        for name, text in zip(words[::2], words[1::2], strict=True):
            report = _read_report(name.decode(errors="replace"), text)
            found[report.name] = report
        return found

    async def _purged(self, event: Event) -> None:
        """Carry out the purge of another node."""
        request = _request(event)
        # The node that was asked may not know all tags that this one has shared.
        keys = await asyncio.to_thread(self._shared_keys, request)
        try:
            purged = await asyncio.to_thread(
                Purge(self._store.files, self._store.index, self._store.generation).carry_out, request
            )
        except MirrorError as error:
            log.error("purge_failed", match=str(request.pattern), of=event.node, cause=str(error))
            report: dict[str, Any] = {"state": "failed", "cause": str(error)[:500]}
        else:
            self._metrics.purged_bytes.inc(purged.size)
            log.info("purged_for_node", match=str(request.pattern), of=event.node, tags=purged.tags, bytes=purged.size)
            counts = {"tags": purged.tags, "manifests": purged.manifests, "blobs": purged.blobs, "size": purged.size}
            report = {"state": "purged", **counts}
        key = self._node.keys.purge(event.name)
        try:
            await self._node.events.delete(keys)
            await self._node.link.call(_REPORT, [key], self._node.name, json.dumps(report), _REPORT_TTL_S)
        except LinkDown as error:
            log.warning("purge_not_reported", match=str(request.pattern), cause=str(error))

    def _shared_keys(self, request: PurgeRequest) -> list[str]:
        """The keys in Redis of what is known of the tags that a purge names."""
        keys, pattern = self._node.keys, request.pattern
        names = {(repository, tag) for repository, tag, _ in self._store.index.tags.matching(pattern)}
        repository = pattern.only_repository()
        if repository is not None and pattern.tag is not None and not is_glob(pattern.tag):
            names.add((repository, Tag.parse(pattern.tag)))
        known = [(repository, tag) for repository, tag in names if repository.registry in self._node.scopes]
        return [key for name in known for key in (keys.tag(*name), keys.kept_tag(*name), keys.refusal("manifest", *name))]


def _fields(request: PurgeRequest) -> dict[str, str | int]:
    age = "" if request.pulled_before is None else round(time.time() - request.pulled_before)
    pattern = request.pattern
    parts = {"registry": pattern.registry, "path": pattern.path, "tag": pattern.tag, "digest": pattern.digest}
    return {"pattern": json.dumps(parts), "older_than": age, "soft": int(request.soft), "client": request.client}


def _request(event: Event) -> PurgeRequest:
    fields = event.fields
    request = PurgeRequest(ImagePattern(**json.loads(fields["pattern"])), soft=fields["soft"] == "1", client=fields["client"])
    if not fields["older_than"]:
        return request
    # The order may be old: this node was away.
    return replace(request, pulled_before=time.time() - event.age - float(fields["older_than"]))


def _read_report(name: str, text: bytes) -> NodePurge:
    try:
        report = json.loads(text)
        if report["state"] != "purged":
            return NodePurge(name, "failed", str(report["cause"]))
        tags, manifests, blobs, size = (int(report[key]) for key in ("tags", "manifests", "blobs", "size"))
        return NodePurge(name, "purged", result=PurgeResult(tags, manifests, blobs, size))
    except MALFORMED:
        return NodePurge(name, "failed", "it reports in a form that this version does not know")
