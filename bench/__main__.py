"""Command line: `python -m bench`."""

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from rich.console import Console

from bench import (
    cluster_cold,
    cluster_costs,
    cluster_faults,
    cluster_hits,
    cold_blob,
    cold_speed,
    far,
    hot_blob,
    hot_manifest,
    hot_tls,
    lazy,
    memory,
    million,
    parallel,
    prefetch,
)
from bench.lineup import Settings
from bench.plot import svg
from bench.process import NotTakenError
from bench.report import Report
from bench.servers import versions
from bench.summary import as_markdown, show_verdicts
from bench.table import as_json, missing, show

MEASUREMENTS: dict[str, Callable[[Settings], Report]] = {
    "hot-blob": hot_blob.measure,
    "hot-tls": hot_tls.measure,
    "hot-manifest": hot_manifest.measure,
    "cold-blob": cold_blob.measure,
    "cold-speed": cold_speed.measure,
    "parallel": parallel.measure,
    "far": far.measure,
    "lazy": lazy.measure,
    "prefetch": prefetch.measure,
    "memory": memory.measure,
    "million": million.measure,
    "cluster-cold": cluster_cold.measure,
    "cluster-hits": cluster_hits.measure,
    "cluster-faults": cluster_faults.measure,
    "cluster-costs": cluster_costs.measure,
}

PIPED_WIDTH = 140
BUSY_LOAD = 0.5

HELP = """\
Measures the mirror beside nginx and docker-registry on this machine, all in one run.

  hot-blob      256 MiB held on disk, 1, 8 and 32 clients: throughput, CPU seconds per GB    2 min
  hot-tls       the same over TLS, 1 and 8 clients, beside nginx                              1 min
  hot-manifest  requests per second by digest and by tag, 32 kept-alive connections          1 min
  cold-blob     16 clients on one 200 MB blob nobody holds, upstream at 50 MB/s in total     5 min
  cold-speed    1 GB nobody holds, upstream unlimited, plain and TLS: throughput, CPU, first byte   4 min
  parallel      one 160 MB blob, upstream at 10 MB/s per connection, 4 connections and 1     1 min
  far           cold blobs from 5, 100 and 250 ms away, each connection limited or not, packets lost or not,
                over 1, 2, 4 and 8 connections, 1 and 16 clients; pulls by dockerd              6 min
  lazy          40 small ranges of a 1 GB blob nobody holds, 100 ms away, fill: ranges       1 min
  prefetch      a cold image of 12 layers, pulled by dockerd with and without prefetch       3 min
  memory        resident size with 500 downloads of distinct cold blobs under way            2 min
  million       a store of a million small blobs: start, and requests while 10% are evicted  4 min
  cluster-cold  3 nodes with 2 workers each, cold content asked of all at once; by skopeo    1 min
  cluster-hits  blobs and manifests that a node holds, beside a mirror without a cluster     1 min
  cluster-faults  the pauses of clients when a node is killed or stopped, or Redis stops     1 min
  cluster-costs   CPU to send and to upload, hits meanwhile, memory, calls for leases        2 min
"""

READING = """\
how to read it
  The servers take turns within each round, so that a slow minute of the machine hits all of them. Columns
  show medians over the rounds; "figure" is the mirror's own median, or the median of its ratio to another
  server within each round, and stands beside the bar it is held to: PASS or short. The same figure from
  another run or another machine is not comparable, its ratio nearly is.

  nginx serves files by sendfile (hot) or is a caching proxy with a lock per blob (cold), with as many
  workers as the mirror. docker-registry runs in proxy mode with its default threads. Nobody logs requests.
  The upstream is bench.origin, a registry slowed down on purpose. Everything is on loopback addresses; the
  files need up to 10 GB and a million files below $TMPDIR and are removed at the end.

examples
  python -m bench                                   everything, about half an hour
  python -m bench --quick                           the order of magnitude in about 10 minutes
  python -m bench --only hot-blob --json hot.json   one measurement, with the value of every round
  python -m bench --only far --svg far.svg --markdown far.md

exit status
  0, whether the bars are met or not; 1 if a figure could not be taken, and then it says why.
"""


def main() -> int:
    """Run what was asked for; the exit status."""
    options = _options()
    console = Console(width=None if sys.stdout.isatty() else PIPED_WIDTH)
    signal.signal(signal.SIGTERM, _terminate)
    console.print(f"{os.cpu_count()} cores, {platform.platform()}", highlight=False)
    console.print(
        ", ".join(f"{name}: {text}" for name, text in versions().items()) + "\n",
        highlight=False,
        soft_wrap=True,
    )
    if os.getloadavg()[0] > BUSY_LOAD:
        console.print(f"The machine is busy already (load {os.getloadavg()[0]:.1f}).\n", style="yellow", highlight=False)
    reports: dict[str, Report] = {}
    for name in options.only or MEASUREMENTS:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as home:
            try:
                reports[name] = MEASUREMENTS[name](Settings(Path(home), options.quick))
            except NotTakenError as error:
                reports[name] = Report(name, absent={name: str(error)})
        reports[name].notes.append(f"Took {time.monotonic() - began:.0f} s.")
        if options.quick:
            reports[name].notes.append("A single short round: good for the order of magnitude, not for a verdict.")
        show(console, reports[name])
    show_verdicts(console, reports)
    _write(options, reports)
    return int(any(missing(report) for report in reports.values()))


def _write(options: argparse.Namespace, reports: dict[str, Report]) -> None:
    """Write the files that were asked for."""
    if options.markdown:
        options.markdown.write_text(as_markdown(reports, " ".join(["python -m bench", *sys.argv[1:]])))
    charts = [report.chart for report in reports.values() if report.chart]
    if options.svg and charts:
        options.svg.write_text(svg(charts[0]))
    if options.json:
        found = {name: as_json(report) for name, report in reports.items()}
        about = {"cores": os.cpu_count(), "platform": platform.platform(), "versions": versions()}
        options.json.write_text(json.dumps({**about, "quick": options.quick, "measurements": found}, indent=2) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=HELP,
        epilog=READING,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=list(MEASUREMENTS), help="run these only")
    parser.add_argument("--quick", action="store_true", help="one short round of each")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every round's values to FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the tables to FILE, with every verdict")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="also draw the times of the far upstreams into FILE")
    return parser.parse_args()


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    # Leaving through the stack ends the servers and removes the files.
    sys.exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
