"""Other nodes: one fetch per blob and manifest for all of them, by leases in Redis and bytes from node to node."""
