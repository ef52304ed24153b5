"""The audit lines of the log: one for each change that an operator makes, and one for each attempt that is refused."""

from __future__ import annotations

from typing import Any

import structlog

from mirror.maintenance.purge import PurgeRequest, PurgeResult
from mirror.transfer.exporter import ExportOrder

log = structlog.get_logger(__name__)

# A line names so many images and the number of the others.
_LOGGED_IMAGES = 10


def log_purge(request: PurgeRequest, purged: PurgeResult, client: str | None) -> None:
    """Log a purge, or a dry run."""
    log.info(
        "audit",
        action="purge",
        match=str(request.pattern),
        pulled_before=request.pulled_before,
        soft=request.soft,
        dry_run=request.dry_run,
        client=client,
        images=list(purged.images[:_LOGGED_IMAGES]),
        more=len(purged.images[_LOGGED_IMAGES:]),
        **purge_counts(purged),
    )


def purge_counts(purged: PurgeResult) -> dict[str, int]:
    """Return the counts of a purge as the API answers them."""
    return {"tags": purged.tags, "manifests": purged.manifests, "blobs": purged.blobs, "bytes": purged.size}


def log_job(action: str, name: str, images: list[str], client: str | None, **details: Any) -> None:
    """Log a job that an operator has added: `sync` or `warm`."""
    named, more = images[:_LOGGED_IMAGES], len(images[_LOGGED_IMAGES:])
    log.info("audit", action=action, order=name, client=client, images=named, more=more, **details)


def log_release(images: list[str], client: str | None) -> None:
    """Log that an operator has let tags through that were held back."""
    named, more = images[:_LOGGED_IMAGES], len(images[_LOGGED_IMAGES:])
    log.info("audit", action="release", client=client, images=named, more=more)


def log_export(order: ExportOrder, client: str | None) -> None:
    """Log that an operator exports images."""
    names = [image.text for image in order.images]
    named, more = names[:_LOGGED_IMAGES], len(names[_LOGGED_IMAGES:])
    log.info("audit", action="export", export=order.name, client=client, images=named, more=more, excluded=len(order.exclude))


def log_cancel(name: str, client: str | None) -> None:
    """Log that an operator has cancelled a job."""
    log.info("audit", action="cancel", order=name, client=client)


def log_sign_in(client: str | None) -> None:
    """Log that somebody has signed in to the status page."""
    log.info("audit", action="sign_in", client=client)


def log_import(images: list[str], refused: list[str], client: str | None) -> None:
    """Log the images that were imported, and those that were refused."""
    named, more = images[:_LOGGED_IMAGES], len(images[_LOGGED_IMAGES:])
    log.info("audit", action="import", client=client, images=named, more=more, refused=refused[:_LOGGED_IMAGES])
