"""Fit a model on a window of features."""
