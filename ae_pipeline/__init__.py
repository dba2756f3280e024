"""Autoencoder pipelines on Dagster: from landed files to versioned latent tables and anomaly reports."""

__version__ = "0.1.0"
