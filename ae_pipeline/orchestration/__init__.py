"""Dagster definitions of a dataset."""
