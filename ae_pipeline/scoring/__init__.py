"""Anomaly scores, p-values and drift from losses and latents."""
