"""The running mirror: builds the object graph, listens, reloads, and stops."""
