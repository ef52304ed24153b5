"""The use case: answer for a manifest, a blob or a list: hit, join, start, revalidate or stale. Knows no HTTP."""
