"""Image lists: which images a compose file, Kubernetes manifests, a Dockerfile or a plain list names.

Each reader gets the text of one file and puts what it finds into `Findings`, with the line: images, mistakes, and what it leaves
out. The command line refuses a file that has a mistake as a whole.
"""
