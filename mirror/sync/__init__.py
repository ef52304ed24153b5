"""Keeps cached images in sync with upstream, and fetches images before a client pulls them.

job             what is to be synced: by the schedule, an operator or a webhook
plan            the images that a job means
image_syncer    one image: checked, fetched, and then the tag switched
run             one job from its first image to its last
scheduler       carries jobs out, in one process of a store
cluster_orders  shares jobs with the other nodes of a cluster
"""
