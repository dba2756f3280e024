"""Checks of the whole state of a dataset, and its repair."""
