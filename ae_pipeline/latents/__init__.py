"""The published latent table."""
