"""Comparison and alignment of latent spaces."""
