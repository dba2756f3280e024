"""Propose the settings of a new dataset from its rows."""
