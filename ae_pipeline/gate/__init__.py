"""Evaluation of a challenger before it may serve."""
