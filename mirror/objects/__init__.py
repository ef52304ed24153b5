"""Object storage behind the store: read before upstream, written behind every pull."""
