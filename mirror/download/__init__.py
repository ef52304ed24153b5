"""One download per blob, any number of readers.

Theory of operation
-------------------
A blob in the making is a sparse file and a chunk map (`partial`). *Fillers* write what is missing at its final offset
(`filler`). *Readers* read the file at their own position as far as it has arrived (`reader`). The *verifier* is one more
reader: it hashes from byte 0 as bytes arrive, and at the end the blob is committed or thrown away (`verifier`).

Who fills is decided by locks of the kernel on the partial file, between the processes that share a store as well as inside one:

* the *driver lock* belongs to the one download that completes the blob: it initialises the map, fills hole after hole,
  verifies and commits. Who cannot get it follows: looks at the map a few dozen times a second, and takes over when the lock
  comes free over an unfinished blob, because the process that held it died;
* a *chunk lock* belongs to whoever is just now writing into that chunk, so that a reader who starts far ahead gets a filler
  of its own, in any process, and no byte is fetched twice.

A download's states only grow: CONNECTING (size unknown), FILLING, VERIFIED (digest matched; the last bytes may be read),
COMMITTED (held under its final name), or FAILED with a cause (`ingest`). Who reads a whole blob sees its last
bytes only once it is VERIFIED, so no such body is ever completed with wrong bytes; a range is given as upstream gave it.
"""
