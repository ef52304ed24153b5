"""The use case: answer for a manifest, a blob or a list with what is held, joined, fetched or stale. Knows no HTTP."""
