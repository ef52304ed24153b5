"""The store on disk: blob files, the index, the space quota, and locks between processes."""
