"""The status page: pages for people, rendered from what the admin API answers to scripts."""
