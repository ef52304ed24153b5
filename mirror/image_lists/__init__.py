"""Image lists: which images a compose file, Kubernetes manifests, a Dockerfile or a plain list names.

Each reader gets the text of one file and puts what it finds into `Findings`, with the line: images, mistakes, and what it leaves
out. A file with a mistake gives no image, so that nobody takes a part of a list for the whole.
"""
