"""Bundles: images as one tar, written for and read from mirrors without a common network.

layout          the names inside a bundle

Writing one:

names           the images that an export means
collector       finds them, fetches what is missing, and pins their content
selection       the manifests of an index that are exported without being named
contents        what an image brings into a bundle, and what it leaves out
bundle          the lines of index.json and manifest.json, the blobs, and the length
tar_writer      the tar around them
pins            open files: what is evicted meanwhile can still be sent
exporter        runs exports: collects everything, then sends it
export_state    how far an export is, for all processes
"""
