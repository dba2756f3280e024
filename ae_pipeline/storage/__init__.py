"""Files, paths, and hashes."""
