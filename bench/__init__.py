"""Measurements of the mirror, nginx and docker-registry side by side; see `python -m bench --help`."""
