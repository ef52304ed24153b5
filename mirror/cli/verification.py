"""The command `verify`, which hashes everything in a store."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from mirror.cli.client import configuration
from mirror.cli.options import ConfigOption, JsonOption
from mirror.cli.problems import refuse
from mirror.config.sections import Storage
from mirror.core.errors import InvalidInput
from mirror.core.units import parse_bytes
from mirror.errors import ConfigurationError
from mirror.maintenance.scrub import Pace, Scrub
from mirror.service import logs
from mirror.storage.blobs import BlobFiles
from mirror.storage.generation import Generation
from mirror.storage.layout import Layout
from mirror.storage.space_quota import SpaceQuota


def verify(
    config: ConfigOption = None,
    rate: Annotated[str, typer.Option(help="Maximum of bytes to read per second, for example 100MiB; 0 for no limit.")] = "0",
    as_json: JsonOption = False,
) -> None:
    """Hash everything in the store, and drop content that does not match its digest. The mirror may serve meanwhile.

    The exit status is 1 if something was dropped. The next pull fetches it again.
    """
    try:
        pace = Pace(parse_bytes(rate))
        settings = configuration(config)
        logs.configure(settings.log)
        layout = Layout(str(settings.storage.path.resolve()))
        layout.require()
    except InvalidInput as error:
        refuse([f"--rate: {error}"])
    except ConfigurationError as error:
        refuse(error.problems)
    results = _hash_store(settings.storage, layout, pace, quiet=as_json)
    if as_json:
        typer.echo(json.dumps({"checked": results.total(), "wrong": results["wrong"]}))
    else:
        typer.echo(f"{results.total()} blobs checked, {results['wrong']} wrong" + (" and dropped" if results["wrong"] else ""))
    raise typer.Exit(1 if results["wrong"] else 0)


def _hash_store(config: Storage, layout: Layout, pace: Pace, *, quiet: bool) -> Counter[str]:
    """Hash every blob and show the progress; return the number of blobs by result."""
    results: Counter[str] = Counter()
    files = BlobFiles(layout, SpaceQuota(layout, config.max_size, config.min_free))
    columns = (TextColumn("{task.fields[blobs]} blobs"), BarColumn(), DownloadColumn(True), TransferSpeedColumn())
    bars = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), disable=quiet)
    with contextlib.closing(Generation(layout.generation)) as generation:
        scrub = Scrub(layout, files, generation, 0, lambda result: results.update([result]))
        total = sum(file.size for file in files.walk())
        with bars:
            task = bars.add_task("verify", total=total, blobs=0)

            def paced(count: int) -> None:
                bars.advance(task, count)
                pace(count)

            for file in files.walk():
                scrub.check(file.digest, paced)
                bars.update(task, blobs=results.total())
    return results
