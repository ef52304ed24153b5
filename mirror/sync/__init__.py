"""Keeps what is held in sync with upstream, and brings what is wanted before a client asks.

order       what has been asked for: by the schedule, an operator or a webhook
plan        which images that means
bringer     one image: asked for, fetched, and only then switched
run         one order from its first image to its last, within the budget
keeper      carries orders out, in one process of a store
"""
