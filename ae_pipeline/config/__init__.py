"""The configuration of a dataset, as written in `defs.yaml`."""
