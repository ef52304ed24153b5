"""A hardened HTTP server for both addresses: sockets, TLS, limits, authentication, error answers."""
