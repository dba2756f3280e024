"""Losses to anomaly scores and p-values."""
