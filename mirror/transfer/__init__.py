"""Bundles: images as one tar, written for and read from mirrors without a common network.

layout          the names inside a bundle
"""
