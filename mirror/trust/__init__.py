"""Signatures of manifests: keys, identities, and the verdict about a digest. Fetches nothing."""
