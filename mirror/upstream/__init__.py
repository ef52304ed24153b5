"""The mirror as a client of registries: connections, tokens, redirects, and what upstream answers mean."""
