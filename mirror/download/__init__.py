"""One ingest per blob, any number of readers.

Theory of operation
-------------------
A blob on its way into the store is a sparse file and a chunk map (`partial`). *Range fetchers* write what is missing at its final
offset (`range_fetcher`). *Readers* read the file at their own position as far as it has arrived (`reader`). The *verifier* hashes
from byte 0: the bytes in hand while they arrive without a gap, else what it reads back (`verifier`). At the end the blob is
committed, or the file is discarded.

A step is what upstream's connection has received since the last one, up to 2 MiB. It costs one turn of a thread, which writes,
marks and hashes it, and one wake-up of each reader who waits for these bytes. The turn of the first step starts the file, too.

Locks of the kernel on the partial file decide who writes, between the processes that share a store as well as inside one:

* the *driver lock* belongs to the one process that completes the blob: it starts the map, fetches hole after hole, verifies and
  commits (`driver`). The others follow (`follower`): they look at the map a few dozen times a second, and take over when the lock
  becomes free over an unfinished blob, because the process that held it died;
* a *chunk lock* belongs to the writer of that chunk, so that a reader who starts far ahead gets a range fetcher of its own, in
  any process, and no byte is fetched twice (`fetcher`).

The state of an ingest is a value (`states`): Connecting (size unknown), Receiving, Verified (digest matched; the last bytes may
be read), Committed (held under its final name), or Failed with a cause and how far the bytes may still be read. The first three
are read off the partial file, whose signal wakes all who wait for a change. A reader of a whole blob gets its last bytes only
once it is Verified, so no such body is ever completed with wrong bytes; a range is passed on as upstream sent it.
"""
