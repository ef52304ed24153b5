"""Work on the store beside pulls: eviction, scrub, purge, deletion of leftovers."""
