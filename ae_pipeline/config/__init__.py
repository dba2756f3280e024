"""The configuration of a dataset."""
