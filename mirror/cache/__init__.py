"""The use case: answer for a manifest, a blob or a list from the store, a running fetch, a new fetch, or stale. Knows no HTTP."""
