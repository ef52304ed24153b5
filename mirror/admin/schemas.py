"""The schemas of what the admin API answers (JSON Schema 2020-12, as OpenAPI 3.1 has it).

Each object names all of its keys, and has no others: a new key needs a line here.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

Schema: TypeAlias = dict[str, Any]

TEXT: Final[Schema] = {"type": "string"}
IMAGE: Final[Schema] = {"type": "string", "examples": ["nginx:1.27"]}
COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
BYTES: Final[Schema] = {"type": "integer", "minimum": 0, "description": "Bytes."}
TIME: Final[Schema] = {"type": "number", "description": "Seconds since the epoch."}
FLAG: Final[Schema] = {"type": "boolean"}


def words(*values: str) -> Schema:
    """Return the schema of a text that is one of these."""
    return {"type": "string", "enum": list(values)}


def optional(schema: Schema) -> Schema:
    """Return the schema of a value that may be null."""
    return {"anyOf": [schema, {"type": "null"}]}


def array(schema: Schema) -> Schema:
    """Return the schema of a list."""
    return {"type": "array", "items": schema}


def mapping(schema: Schema) -> Schema:
    """Return the schema of an object with any keys."""
    return {"type": "object", "additionalProperties": schema}


def record(*, maybe: Schema | None = None, **properties: Schema) -> Schema:
    """Return the schema of an object with these keys.

    Args:
        maybe: keys that may be missing, as in rows that an earlier version has written.
    """
    described = {**properties, **(maybe or {})}
    return {"type": "object", "properties": described, "required": list(properties), "additionalProperties": False}


_OUTCOMES: Final = words("HIT", "MISS", "JOINED", "REVALIDATED", "STALE", "BYPASS", "ERROR")
_CHECK: Final = record(ok=FLAG, text=TEXT)

ERROR: Final = record(error=TEXT)

READINESS: Final = record(
    ready=FLAG,
    draining=FLAG,
    store_writable=FLAG,
    credentials=mapping(TEXT),
    files=mapping(TEXT),
    checks=mapping(_CHECK),
    upstreams=mapping(TEXT),
)

IMAGES: Final = record(
    images=array(
        record(
            name=TEXT,
            registry=TEXT,
            repository=TEXT,
            tag=optional(TEXT),
            digest=TEXT,
            bytes=BYTES,
            pulled=TIME,
            complete=FLAG,
        )
    ),
    next=optional(TEXT),
    registries=array(record(registry=TEXT, images=COUNT, bytes=BYTES, stored=BYTES, max_size=BYTES)),
)

SEARCHED: Final = record(results=array(record(name=TEXT, tags=COUNT)), count=COUNT)

IMPORTED: Final = record(
    images=array(
        record(
            name=TEXT,
            digest=optional(TEXT),
            result=words("imported", "moved", "unchanged", "refused"),
            old=optional(TEXT),
            cause=optional(TEXT),
            note=optional(TEXT),
            platforms=array(TEXT),
            left_out=array(TEXT),
            attached=FLAG,
        )
    ),
    bytes=BYTES,
    bytes_held=BYTES,
)

_PURGE_COUNTS: Final = {"tags": COUNT, "manifests": COUNT, "blobs": COUNT, "bytes": BYTES}
_NODE_PURGE: Final = record(maybe=_PURGE_COUNTS, name=TEXT, state=words("purged", "told", "failed"), cause=optional(TEXT))
PURGED: Final = record(
    # Of a node in a cluster.
    maybe={"nodes": array(_NODE_PURGE), "untold": optional(TEXT)},
    images=array(TEXT),
    **_PURGE_COUNTS,
)

_DOWNLOAD: Final = record(
    digest=TEXT,
    image=optional(TEXT),
    state=words("CONNECTING", "FILLING", "VERIFIED", "COMMITTED", "FAILED"),
    bytes=BYTES,
    size=optional(BYTES),
    bytes_per_second=optional(BYTES),
    readers=COUNT,
    clients=array(TEXT),
)
DOWNLOADS: Final = record(downloads=array(_DOWNLOAD))

# ---- sync jobs

_RESULT: Final = {
    "result": words("unchanged", "completed", "moved", "held_back", "untrusted", "gone", "failed", "skipped"),
    "time": TIME,
    "bytes_fetched": BYTES,
    "bytes_held": BYTES,
    "cause": optional(TEXT),
}
# `node` in a cluster.
_MAYBE_IN_RESULT: Final = {"platforms": array(TEXT), "old": optional(TEXT), "digest": optional(TEXT), "node": TEXT}
_IMAGE_RESULT: Final = record(maybe=_MAYBE_IN_RESULT, image=TEXT, **_RESULT)
_SUMMARY: Final = {
    "name": TEXT,
    "kind": words("schedule", "sync", "warm"),
    "by": words("schedule", "operator", "webhook"),
    "began": TIME,
    "ended": optional(TIME),
    "total": COUNT,
    "tags": mapping(COUNT),
    "bytes_fetched": BYTES,
    "bytes_held": BYTES,
    "problems": mapping(TEXT),
    "recent": array(_IMAGE_RESULT),
}
_COUNTS: Final = {"total": COUNT, "tags": mapping(COUNT), "bytes_fetched": BYTES, "bytes_held": BYTES}
_UNDER_WAY: Final = record(maybe={"node": TEXT}, image=TEXT, bytes=BYTES, size=BYTES)
_NODE_ORDER: Final = record(
    maybe={"began": TIME, "ended": optional(TIME), **_COUNTS},
    name=TEXT,
    state=words("told", "waiting", "running", "completed", "limited", "failed", "timeout", "cancelled", "lost"),
    cause=optional(TEXT),
)
# In a cluster: what each node has done, or why that is not known.
_OF_CLUSTER: Final = {"nodes": array(_NODE_ORDER), "cause": optional(TEXT)}
_MAYBE_IN_JOB: Final = {"created": TIME, "absent": array(TEXT), **_OF_CLUSTER}
_ENDED_JOB: Final = record(
    maybe=_MAYBE_IN_JOB, result=words("completed", "limited", "failed", "timeout", "cancelled"), **_SUMMARY
)
_RUNNING_JOB: Final = record(maybe=_MAYBE_IN_JOB, result=words("running"), images=array(_UNDER_WAY), **_SUMMARY)
_MAYBE_IN_WAITING: Final = {"share": words("all", "one"), **_OF_CLUSTER}
_WAITING: Final = {
    "name": TEXT,
    "kind": words("sync", "warm"),
    "images": array(TEXT),
    "platforms": array(TEXT),
    "asked": TIME,
    "after": TIME,
    "by": words("operator", "webhook"),
    "more": COUNT,
}
JOB: Final[Schema] = {"anyOf": [_ENDED_JOB, _RUNNING_JOB, record(maybe=_MAYBE_IN_WAITING, result=words("waiting"), **_WAITING)]}
JOBS: Final = record(
    running=array(_RUNNING_JOB),
    waiting=array(record(maybe=_MAYBE_IN_WAITING, **_WAITING)),
    last=record(**dict.fromkeys(("schedule", "sync", "warm"), optional(_ENDED_JOB))),
    next=optional(TIME),
    images=array(_IMAGE_RESULT),
    next_image=optional(TEXT),
)
ORDERED: Final = record(maybe={"untold": optional(TEXT)}, order=TEXT)

# ---- exports

_BUNDLED: Final = record(
    image=TEXT, digest=TEXT, platforms=array(TEXT), left_out=array(TEXT), attached=COUNT, docker_obstacle=optional(TEXT)
)
EXPORT: Final = record(
    name=TEXT,
    client=TEXT,
    images=array(TEXT),
    more=COUNT,
    began=TIME,
    updated=TIME,
    result=words("running", "completed", "failed", "cut"),
    phase=words("finding", "fetching", "sending", "ended"),
    image=optional(TEXT),
    done=COUNT,
    total=COUNT,
    bytes=BYTES,
    size=BYTES,
    cause=optional(TEXT),
    contents=array(_BUNDLED),
)
EXPORTS: Final = record(exports=array(EXPORT))

# ---- nodes

_OFFSET: Final[Schema] = {"type": "number", "description": "Seconds that the clock of Redis is ahead."}
NODES: Final = record(
    redis=words("up", "alone"),
    cause=optional(TEXT),
    nodes=array(
        record(
            name=TEXT,
            self=FLAG,
            # What a node says of itself; one of another version may leave something out.
            maybe={
                "version": TEXT,
                "state": words("up", "draining"),
                "started": TIME,
                "zone": TEXT,
                "clock": _OFFSET,
                "owed": COUNT,
            },
        )
    ),
)

# ---- status and explain

_SECONDS: Final[Schema] = {"type": "number", "minimum": 0, "description": "Seconds."}
_HOLD_REASONS: Final = words("cooldown", "freeze")
_HELD_TAG: Final = record(image=TEXT, old=optional(TEXT), new=TEXT, reason=_HOLD_REASONS, seen=TIME, until=optional(TIME))
RELEASED: Final = record(released=array(record(image=TEXT, digest=TEXT)), order=optional(TEXT))

_TROUBLE: Final = record(image=TEXT, outcome=_OUTCOMES, time=TIME, cause=optional(TEXT), times=COUNT)
STATUS: Final = record(
    version=TEXT,
    ready=FLAG,
    draining=FLAG,
    store_writable=FLAG,
    credentials=mapping(TEXT),
    files=mapping(TEXT),
    checks=mapping(_CHECK),
    store=record(
        path=TEXT,
        bytes=optional(BYTES),
        max_size=BYTES,
        blobs=optional(COUNT),
        free=optional(BYTES),
        min_free=BYTES,
        evicted=mapping(record(blobs=COUNT, bytes=BYTES)),
        purged_bytes=BYTES,
    ),
    objects=optional(
        record(
            up=FLAG,
            problem=optional(TEXT),
            bytes=optional(BYTES),
            max_size=optional(BYTES),
            owed=optional(COUNT),
            deleted=record(objects=COUNT, bytes=BYTES),
        )
    ),
    registries=array(record(registry=TEXT, bytes=BYTES, blobs=COUNT, max_size=BYTES)),
    requests=record(
        pulls=COUNT,
        outcomes=mapping(COUNT),
        errors=COUNT,
        hits=COUNT,
        hit_ratio=optional({"type": "number", "minimum": 0, "maximum": 1}),
        served_bytes=BYTES,
        upstream_bytes=BYTES,
    ),
    upstreams=array(
        record(registry=TEXT, name=TEXT, state=TEXT, up=FLAG, pulls_left=optional(COUNT), pull_limit=optional(COUNT))
    ),
    offline={**array(TEXT), "description": "The registries that are never asked."},
    held_back=record(count=COUNT, tags=array(_HELD_TAG)),
    downloads=array(_DOWNLOAD),
    troubles=array(_TROUBLE),
    sync=record(last=optional(_ENDED_JOB), next_run=optional(TIME)),
    cluster=optional(NODES),
)

_BLOB: Final = record(
    digest=TEXT, media_type=TEXT, size=BYTES, state=words("held", "downloading", "missing", "foreign"), bytes=BYTES
)
EXPLANATION: Final = record(
    image=TEXT,
    digest=optional(TEXT),
    held=words("no", "partial", "complete"),
    policy=TEXT,
    tag=optional(
        record(
            checked=optional(TIME),
            changed=optional(TIME),
            fresh_until=optional(TIME),
            denied=FLAG,
            ttl={**optional({"type": "number"}), "description": "Seconds; null if it does not expire."},
            ttl_rule=TEXT,
            pinned=FLAG,
            hold_rule=optional(record(cooldown=_SECONDS, cooldown_new=words("serve", "refuse"), freeze=FLAG)),
            held_back=optional(record(digest=TEXT, reason=_HOLD_REASONS, until=optional(TIME))),
        )
    ),
    pulled=optional(TIME),
    last=optional(record(outcome=_OUTCOMES, when=TIME, cause=optional(TEXT))),
    miss=optional(record(when=TIME, cause=words("new", "moved", "evicted", "purged", "lost"), text=TEXT, since=optional(TIME))),
    trust=optional(
        record(
            rule=TEXT,
            mode=words("enforce", "warn"),
            result=optional(words("signed", "unsigned", "wrong")),
            why=optional(TEXT),
            reached=optional(TIME),
        )
    ),
    pull=record(
        action=words("serve", "check", "fetch", "refuse"), outcome=optional(_OUTCOMES), why=TEXT, stale_until=optional(TIME)
    ),
    platforms=array(
        record(platform=optional(TEXT), digest=TEXT, held=FLAG, complete=FLAG, bytes=BYTES, size=BYTES, blobs=array(_BLOB))
    ),
    upstreams=array(record(name=TEXT, state=TEXT, next=FLAG, pulls_left=optional(COUNT))),
    sync=record(kept=FLAG, last=optional(record(maybe=_MAYBE_IN_RESULT, **_RESULT)), next_run=optional(TIME)),
    objects=optional(
        record(
            tag=optional(record(digest=TEXT, checked=TIME)),
            manifests=COUNT,
            blobs=COUNT,
            missing=array(TEXT),
            bytes=BYTES,
            problem=optional(TEXT),
        )
    ),
)
