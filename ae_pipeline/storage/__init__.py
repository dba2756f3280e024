"""Local files: paths of a dataset, atomic writes, Parquet and JSON Lines files, content hashes."""
