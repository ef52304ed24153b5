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

Reading one:

imports         runs imports
bundle_import   receives a bundle, then makes its images visible
decompression   what is in gzip or zstd
tar_reader      the members of a tar, in every dialect of tar
receiver        keeps the documents, and stages all other content
documents       the images of index.json or manifest.json
entry_names     the names of an entry, as tools write them
image_names     the name that each image gets
image_importer  one image after the other, with its signatures
image_check     whether an image is whole
docker_archive  makes a manifest where Docker's old format has none
publisher       stores an image, grants it, and switches its tag
layout_folder   an OCI image layout in a folder
errors          why a bundle or an image of it is refused
"""
